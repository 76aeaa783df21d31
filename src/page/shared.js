"use strict";
// What the live page and the reports have in common. It stands before the script of each, in the same element.
const color = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const add = (parent, tag, name, text) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return parent.appendChild(element);
};
const grouped = value => Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");
const digits = value => Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(2);

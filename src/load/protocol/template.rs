//! Bytes in which a number is the only thing that changes.

/// How the number is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Digits {
    /// Sixteen hexadecimal digits: a request of HELO always has the same length, which makes a comparison cheap.
    Hex,
    Decimal,
}

/// A number as text.
struct Written {
    digits: [u8; 20],
    len: usize,
}

impl Written {
    fn new(mut number: u64, digits: Digits) -> Self {
        let mut written = Self { digits: [b'0'; 20], len: 16 };
        if digits == Digits::Hex {
            written.digits[..8].copy_from_slice(&hex(number >> 32));
            written.digits[8..16].copy_from_slice(&hex(number & 0xffff_ffff));
            return written;
        }
        let mut at = written.digits.len();
        loop {
            at -= 1;
            written.digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        written.digits.copy_within(at.., 0);
        written.len = 20 - at;
        written
    }

    fn bytes(&self) -> &[u8] {
        &self.digits[..self.len]
    }
}

/// Bytes with a number in some places, kept as they were last written.
#[derive(Debug, Clone)]
pub(super) struct Template {
    /// What stands between the numbers.
    pub(super) parts: Vec<Vec<u8>>,
    pub(super) digits: Digits,
    pub(super) bytes: Vec<u8>,
    /// Where the numbers stand in `bytes`, and how long they are.
    slots: Vec<usize>,
    width: usize,
    /// Where the lower half of the number stands, if nothing else is written for every request.
    half: Option<usize>,
    /// The number that stands there.
    number: u64,
    /// The bytes so many times, each with a number of its own: what several requests or replies in a row are. Whoever asks for
    /// them has the lower half of each number written; the rest stays from one time to the next.
    row: Vec<u8>,
    copies: usize,
}

impl Template {
    pub(super) fn new(parts: Vec<Vec<u8>>, digits: Digits) -> Self {
        let mut template = Self {
            parts,
            digits,
            bytes: Vec::new(),
            slots: Vec::new(),
            width: 0,
            half: None,
            number: 0,
            row: Vec::new(),
            copies: 0,
        };
        template.rebuild(&Written::new(0, digits));
        template
    }

    fn rebuild(&mut self, number: &Written) {
        self.bytes.clear();
        self.slots.clear();
        self.width = number.len;
        self.copies = 0;
        for (at, part) in self.parts.iter().enumerate() {
            if at > 0 {
                self.slots.push(self.bytes.len());
                self.bytes.extend_from_slice(number.bytes());
            }
            self.bytes.extend_from_slice(part);
        }
        self.half = match self.slots[..] {
            [slot] if self.digits == Digits::Hex => Some(slot + 8),
            _ => None,
        };
    }

    /// Has the bytes behind the number in place `at` be others from now on.
    pub(super) fn replace_part(&mut self, at: usize, part: Vec<u8>) {
        self.parts[at] = part;
        self.number = 0;
        self.rebuild(&Written::new(0, self.digits));
    }

    /// Where the lower half of the number stands, if nothing else differs between the bytes as they are and those for `number`.
    ///
    /// What is done for every request and every reply goes by this. Bytes that were just written are slow to be read again in
    /// larger pieces, so these are not written to.
    fn lower_half(&self, number: u64) -> Option<usize> {
        self.half.filter(|_| self.number >> 32 == number >> 32)
    }

    /// The bytes for `count` numbers from `first` on, each by `step` above the one before.
    #[inline]
    pub(super) fn row(&mut self, first: u64, step: u64, count: usize) -> &[u8] {
        // One by itself, which is what most requests are: nothing but its eight digits is written.
        if count == 1
            && self.copies > 0
            && let Some(at) = self.lower_half(first)
        {
            let copy = &mut self.row[..self.bytes.len()];
            copy[at..at + 8].copy_from_slice(&hex(first & 0xffff_ffff));
            return copy;
        }
        self.whole_row(first, step, count)
    }

    #[inline(never)]
    fn whole_row(&mut self, first: u64, step: u64, count: usize) -> &[u8] {
        let len = match self.write_copies(first, step, count) {
            Some(len) => len,
            None => {
                self.row.clear();
                self.copies = 0;
                for at in 0..count as u64 {
                    self.write(first + at * step);
                    self.row.extend_from_slice(&self.bytes);
                }
                self.row.len()
            }
        };
        &self.row[..len]
    }

    /// Whether `bytes` begin with those for `count` numbers; `false` also where that is to be found out in another way.
    pub(super) fn is_row_prefix_of(&mut self, bytes: &[u8], first: u64, step: u64, count: usize) -> bool {
        let len = self.write_copies(first, step, count);
        len.is_some_and(|len| bytes.get(..len) == Some(&self.row[..len]))
    }

    /// Writes the numbers into that many copies, if nothing else differs between them. Returns their length.
    fn write_copies(&mut self, first: u64, step: u64, count: usize) -> Option<usize> {
        if self.digits == Digits::Hex && self.number >> 32 != first >> 32 {
            self.write(first);
        }
        let at = self.lower_half(first)?;
        self.lower_half(first + step * (count as u64).saturating_sub(1))?;
        if self.copies == 0 {
            self.row.clear();
        }
        for _ in self.copies..count {
            self.row.extend_from_slice(&self.bytes);
            self.copies += 1;
        }
        let (len, mut slot, mut number) = (self.bytes.len(), at, first);
        for _ in 0..count {
            self.row[slot..slot + 8].copy_from_slice(&hex(number & 0xffff_ffff));
            (slot, number) = (slot + len, number + step);
        }
        Some(count * len)
    }

    /// Whether `bytes` begin with those for `number`; `None` where that is to be found out in another way.
    #[inline]
    pub(super) fn is_prefix_of(&self, bytes: &[u8], number: u64) -> Option<bool> {
        let at = self.lower_half(number)?;
        let bytes = bytes.get(..self.bytes.len())?;
        let ((head, rest), (own_head, own_rest)) =
            (bytes.split_at_checked(at)?, self.bytes.split_at_checked(at)?);
        let ((digits, tail), (_, own_tail)) =
            (rest.split_first_chunk::<8>()?, own_rest.split_first_chunk::<8>()?);
        Some(*digits == hex(number & 0xffff_ffff) && tail == own_tail && head == own_head)
    }

    /// The bytes for `number`. Tells whether their length may have changed.
    pub(super) fn write(&mut self, number: u64) -> bool {
        if self.slots.is_empty() || self.number == number {
            return false;
        }
        if self.number >> 32 != number >> 32 {
            self.copies = 0;
        }
        self.number = number;
        let number = Written::new(number, self.digits);
        if number.len != self.width {
            self.rebuild(&number);
            return true;
        }
        for &slot in &self.slots {
            self.bytes[slot..slot + number.len].copy_from_slice(number.bytes());
        }
        false
    }
}

/// Eight hexadecimal digits of a number of 32 bits, without a loop or a table: they are written twice for every request.
fn hex(value: u64) -> [u8; 8] {
    let mut x = (value | value << 16) & 0x0000_ffff_0000_ffff;
    x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
    x = (x | x << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let letters = ((x + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    (x + 0x3030_3030_3030_3030 + letters * u64::from(b'a' - b'0' - 10)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_what_the_standard_library_writes() {
        for value in [0, 1, 9, 10, 15, 16, 0xdead_beef, 0x0123_4567, 0x89ab_cdef, u64::from(u32::MAX)] {
            assert_eq!(hex(value).to_vec(), format!("{value:08x}").into_bytes());
        }
        for number in [0, 7, 10, 99, 100, u64::from(u32::MAX) + 1, u64::MAX] {
            assert_eq!(Written::new(number, Digits::Decimal).bytes(), number.to_string().as_bytes());
            assert_eq!(Written::new(number, Digits::Hex).bytes(), format!("{number:016x}").as_bytes());
        }
    }
}

//! x
use crate::results::Results;
/// x
pub fn render(_: &Results) -> String {
    String::new()
}

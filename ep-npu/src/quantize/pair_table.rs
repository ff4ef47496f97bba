//! Functions of two codes: a table of all 65,536 pairs, and the arithmetic that gives the same, if any.
//!
//! ```text
//! closure -> Table2 -> the device's ADD or MUL, where its formula equals every entry
//!                   -> PAIR_TABLE, which looks it up
//! ```
//!
//! A table is exact because it has no more entries. The arithmetic is exact because all of them were
//! compared: that is the certificate, and it costs a few milliseconds once.

use super::codes::Table;
use npu_uapi::requantise::{AddTerms, MulTerms, add, multiply};
use std::fmt;
use std::sync::Arc;

/// A code for each pair of codes.
#[derive(Clone, Eq, PartialEq)]
pub struct Table2(Arc<[u8]>);

/// Arithmetic of the device on two codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arithmetic2 {
    /// A sum, see [`npu_uapi::requantise::add`].
    Add(AddTerms),
    /// A product, see [`npu_uapi::requantise::multiply`].
    Multiply(MulTerms),
}

/// A function of two codes and how the device computes it.
#[derive(Clone, Debug)]
pub enum Function2 {
    /// By arithmetic.
    Arithmetic(Arithmetic2),
    /// By looking it up.
    Table(Table2),
}

impl Table2 {
    /// The table of `function`.
    pub fn new(function: impl Fn(u8, u8) -> u8) -> Self {
        let row = |a| (0..=255).map(move |b| (a, b));
        Self((0..=255).flat_map(row).map(|(a, b)| function(a, b)).collect())
    }

    /// The table of `function`, unless that fails for a pair.
    ///
    /// # Errors
    /// The first failure.
    pub fn try_new<E>(function: impl Fn(u8, u8) -> Result<u8, E>) -> Result<Self, E> {
        let row = |a| (0..=255).map(move |b| (a, b));
        let entries = (0..=255).flat_map(row).map(|(a, b)| function(a, b));
        Ok(Self(entries.collect::<Result<Vec<u8>, E>>()?.into()))
    }

    /// The code for a pair.
    pub fn code(&self, a: u8, b: u8) -> u8 {
        self.0[usize::from(a) * 256 + usize::from(b)]
    }

    /// The entries, `a * 256 + b` being that of `a` and `b`.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same function with `table` behind it.
    pub fn then(&self, table: &Table) -> Self {
        Self(self.0.iter().map(|&code| table[usize::from(code)]).collect())
    }

    /// The same function with a table before each operand, where there is one.
    pub fn after(&self, [first, second]: [Option<&Table>; 2]) -> Self {
        let through =
            |table: Option<&Table>, code: u8| table.map_or(code, |t| t[usize::from(code)]);
        Self::new(|a, b| self.code(through(first, a), through(second, b)))
    }

    /// The same function of exchanged operands.
    pub fn exchanged(&self) -> Self {
        Self::new(|a, b| self.code(b, a))
    }

    /// The function of one code that it is where both operands are the same tensor.
    pub fn diagonal(&self) -> Table {
        Arc::new(std::array::from_fn(|code| self.0[code * 256 + code]))
    }

    /// Whether `arithmetic` gives every entry.
    pub fn is(&self, arithmetic: Arithmetic2) -> bool {
        let mut entries = self.0.iter();
        (0..=255).all(|a| (0..=255).all(|b| entries.next() == Some(&arithmetic.code(a, b))))
    }

    /// The first of `candidates` that gives every entry, else the table.
    pub fn function(self, candidates: &[Arithmetic2]) -> Function2 {
        let same = candidates.iter().find(|&&candidate| candidate.is_sound() && self.is(candidate));
        same.map_or_else(|| Function2::Table(self.clone()), |&found| Function2::Arithmetic(found))
    }
}

/// Not the entries: there are 65,536.
impl fmt::Debug for Table2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |a, b| self.code(a, b);
        let corners = [at(0, 0), at(0, 255), at(255, 0), at(255, 255)];
        f.debug_struct("Table2").field("corners", &corners).finish_non_exhaustive()
    }
}

impl Arithmetic2 {
    /// The code for a pair.
    pub fn code(self, a: u8, b: u8) -> u8 {
        match self {
            Self::Add(terms) => add(a, b, terms),
            Self::Multiply(terms) => multiply(a, b, terms),
        }
    }

    /// Whether its terms are numbers.
    fn is_sound(self) -> bool {
        match self {
            Self::Add(terms) => {
                [terms.first, terms.second, terms.offset].iter().all(|term| term.is_finite())
            }
            Self::Multiply(terms) => terms.multiplier.is_finite(),
        }
    }
}

impl Function2 {
    /// The code for a pair.
    pub fn code(&self, a: u8, b: u8) -> u8 {
        match self {
            Self::Arithmetic(arithmetic) => arithmetic.code(a, b),
            Self::Table(table) => table.code(a, b),
        }
    }

    /// What makes it exact, for people.
    pub fn certificate(&self) -> &'static str {
        match self {
            Self::Arithmetic(Arithmetic2::Add(_)) => "ADD gives all 65536 pairs the CPU's code",
            Self::Arithmetic(Arithmetic2::Multiply(_)) => {
                "MUL gives all 65536 pairs the CPU's code"
            }
            Self::Table(_) => "a table of all 65536 pairs",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use npu_uapi::requantise::{dequantise, quantise};

    const A: (f32, u8) = (0.031, 120);
    const B: (f32, u8) = (0.047, 7);
    const Y: (f32, u8) = (0.062, 100);

    fn float(function: impl Fn(f32, f32) -> f32) -> Table2 {
        let value = |code, (scale, zero_point)| dequantise(code, scale, zero_point);
        Table2::new(|a, b| quantise(function(value(a, A), value(b, B)), Y.0, Y.1))
    }

    #[test]
    fn arithmetic_is_taken_only_where_it_gives_every_pair() {
        let (sum, terms) = (Arithmetic2::Add(AddTerms::new(A, B, Y)), AddTerms::new(A, B, Y));
        let exact = Table2::new(|a, b| add(a, b, terms));
        assert!(matches!(exact.clone().function(&[sum]), Function2::Arithmetic(_)));
        let mut one_off = exact.bytes().to_vec();
        one_off[77 * 256 + 200] ^= 1;
        let one_off = Table2::new(|a, b| one_off[usize::from(a) * 256 + usize::from(b)]);
        let Function2::Table(found) = one_off.clone().function(&[sum]) else { panic!("not equal") };
        assert_eq!(found, one_off);
    }

    #[test]
    fn terms_that_are_no_numbers_are_no_candidates() {
        let terms = MulTerms { multiplier: f32::NAN, ..MulTerms::new(A, B, Y) };
        let table = Table2::new(|a, b| multiply(a, b, terms));
        assert!(matches!(table.function(&[Arithmetic2::Multiply(terms)]), Function2::Table(_)));
    }

    #[test]
    fn tables_before_and_behind_are_the_same_as_one_step_after_the_other() {
        let table = float(|a, b| a - b);
        let flip: Table = Arc::new(std::array::from_fn(|code| 255 - u8::try_from(code).unwrap()));
        let all = table.after([Some(&flip), None]).then(&flip);
        for (a, b) in [(0, 0), (3, 250), (255, 128)] {
            assert_eq!(all.code(a, b), 255 - table.code(255 - a, b));
            assert_eq!(table.exchanged().code(a, b), table.code(b, a));
        }
        assert_eq!(table.diagonal()[9], table.code(9, 9));
    }
}

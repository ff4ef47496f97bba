//! Functions of two codes: a table of all 65,536 pairs, and the arithmetic that gives the same, if any.
//!
//! ```text
//! closure -> Table2 -> the device's ADD or MUL, where its formula equals every entry
//!                   -> ADD with terms a few last places beside, where those do
//!                   -> PAIR_TABLE, which looks it up
//! ```
//!
//! Of 65,536 sums a few come so near to a rounding tie that roundings on the way decide, which the CPU provider
//! may have others of. Terms beside move those sums to the side where it has them.
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

    /// The first of `candidates` that gives every entry, itself or with terms beside its own, else the table.
    pub fn function(self, candidates: &[Arithmetic2]) -> Function2 {
        let sound = || candidates.iter().copied().filter(|candidate| candidate.is_sound());
        let same = sound().find(|&candidate| self.is(candidate));
        let beside = || sound().find_map(|candidate| self.beside(candidate));
        same.or_else(beside).map_or_else(|| Function2::Table(self), Function2::Arithmetic)
    }

    /// A sum that gives every entry, its terms a few last places beside those of `candidate`.
    fn beside(&self, candidate: Arithmetic2) -> Option<Arithmetic2> {
        /// Last places to either side, of the factors and of the offset.
        const FACTORS: i32 = 3;
        const OFFSETS: i32 = 8;
        let Arithmetic2::Add(terms) = candidate else { return None };
        let critical = self.critical(terms)?;
        let places = |most: i32| {
            let mut places: Vec<i32> = (-most..=most).collect();
            places.sort_by_key(|place| place.abs());
            places
        };
        for offset in places(OFFSETS).into_iter().map(|place| moved(terms.offset, place)) {
            for first in places(FACTORS).into_iter().map(|place| moved(terms.first, place)) {
                for second in places(FACTORS).into_iter().map(|place| moved(terms.second, place)) {
                    let found = AddTerms { first, second, offset };
                    let fits = |&(a, b): &(u8, u8)| add(a, b, found) == self.code(a, b);
                    let found = Arithmetic2::Add(found);
                    if critical.iter().all(fits) && found.is_sound() && self.is(found) {
                        return Some(found);
                    }
                }
            }
        }
        None
    }

    /// The pairs whose sum is next to a rounding tie, those first whose entry `terms` do not give; `None` where
    /// entries elsewhere differ, too.
    fn critical(&self, terms: AddTerms) -> Option<Vec<(u8, u8)>> {
        /// How near: some dozens of the largest sum's last places.
        const NEAR: f64 = 1.0 / 1024.0;
        let (mut others, mut found) = (Vec::new(), Vec::new());
        let pairs = (0..=255).flat_map(|a| (0..=255).map(move |b| (a, b)));
        for (a, b) in pairs {
            let [x, y] = [a, b].map(f64::from);
            let [first, second, offset] = [terms.first, terms.second, terms.offset].map(f64::from);
            let sum = x * first + y * second + offset;
            let is_near = ((sum - sum.floor()) - 0.5).abs() < NEAR;
            match (add(a, b, terms) == self.code(a, b), is_near) {
                (false, true) => found.push((a, b)),
                (false, false) => return None,
                (true, true) => others.push((a, b)),
                (true, false) => {}
            }
        }
        found.append(&mut others);
        Some(found)
    }
}

/// The float `places` last places from `term`, away from zero where that is positive.
fn moved(term: f32, places: i32) -> f32 {
    f32::from_bits(term.to_bits().saturating_add_signed(places))
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
    fn terms_beside_decide_sums_next_to_a_tie() {
        // 2^-20 is below half a last place of the sums, so these terms leave the tie to evenness.
        let terms = AddTerms { first: 1.0, second: 0.25, offset: 64.0 };
        let table = Table2::new(|a, b| {
            let sum = f64::from(a) + 0.25 * f64::from(b) + 64.0 + 2f64.powi(-20);
            (0..=255).find(|&code| f64::from(code) + 0.5 > sum).unwrap_or(255)
        });
        assert!(!table.is(Arithmetic2::Add(terms)));
        let Function2::Arithmetic(found) = table.clone().function(&[Arithmetic2::Add(terms)])
        else {
            panic!("there are terms beside")
        };
        assert!(table.is(found));
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

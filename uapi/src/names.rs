//! Names of a program's operations: which ONNX node each `op_id` stands for. For people; no command reads
//! them.
//!
//! ```text
//! for each operation, in rising order of op_id:  op_id u32, length u32, name in UTF-8
//! ```
//!
//! LOAD_PROGRAM may bring them beside an image, so that the device names nodes in its fault log by itself.

use alloc::string::String;
use alloc::vec::Vec;

/// Most bytes of the names of one program.
pub const MOST_BYTES: usize = 1 << 20;
/// Most bytes of one name; a longer one is cut.
pub const MOST_NAME_BYTES: usize = 255;

/// Why bytes are no names.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NamesError {
    /// Too many bytes.
    #[error("{found} bytes of names, at most {MOST_BYTES} are taken")]
    TooLong {
        /// Bytes given.
        found: usize,
    },
    /// A record that is cut off, too long, no UTF-8, or out of order.
    #[error("the names are malformed at byte {at}: {what}")]
    Malformed {
        /// Where.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
}

/// The names of a program, checked.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Names {
    /// The wire form.
    bytes: Vec<u8>,
    /// By rising `op_id`: where in `bytes` its name lies.
    places: Vec<(u32, u32, u32)>,
}

impl Names {
    /// The names of `named`, the first of each `op_id`; as many as there is room for.
    pub fn new<'a>(named: impl IntoIterator<Item = (u32, &'a str)>) -> Self {
        let mut named: Vec<(u32, &str)> = named.into_iter().collect();
        named.sort_by_key(|(op_id, _)| *op_id);
        named.dedup_by_key(|(op_id, _)| *op_id);
        let mut names = Self::default();
        for (op_id, name) in named {
            let name = cut(name);
            if names.bytes.len() + 8 + name.len() > MOST_BYTES {
                break;
            }
            let len = u32::try_from(name.len()).unwrap_or(0);
            names.bytes.extend_from_slice(&op_id.to_le_bytes());
            names.bytes.extend_from_slice(&len.to_le_bytes());
            let start = u32::try_from(names.bytes.len()).unwrap_or(0);
            names.bytes.extend_from_slice(name.as_bytes());
            names.places.push((op_id, start, len));
        }
        names
    }

    /// The wire form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads the wire form; never panics.
    ///
    /// # Errors
    /// The bytes are no names.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, NamesError> {
        let found = bytes.len();
        if found > MOST_BYTES {
            return Err(NamesError::TooLong { found });
        }
        let (mut at, mut places) = (0, Vec::new());
        let mut least = 0;
        while at < found {
            let bad = |what| NamesError::Malformed { at, what };
            let word = |at: usize| {
                let word = bytes.get(at..at.checked_add(4)?)?;
                Some(u32::from_le_bytes(word.try_into().ok()?))
            };
            let head = word(at).zip(word(at + 4));
            let (op_id, len) = head.ok_or(bad("a record is cut off"))?;
            let size = usize::try_from(len).unwrap_or(usize::MAX);
            if size > MOST_NAME_BYTES {
                return Err(bad("a name is too long"));
            }
            let name = bytes.get(at + 8..at + 8 + size).ok_or(bad("a record is cut off"))?;
            core::str::from_utf8(name).map_err(|_| bad("a name is not UTF-8"))?;
            if u64::from(op_id) < least {
                return Err(bad("operations are not in rising order"));
            }
            least = u64::from(op_id) + 1;
            places.push((op_id, u32::try_from(at + 8).unwrap_or(0), len));
            at += 8 + size;
        }
        Ok(Self { bytes, places })
    }

    /// The name of operation `op_id`, if there is one.
    pub fn get(&self, op_id: u32) -> Option<&str> {
        let at = self.places.binary_search_by_key(&op_id, |place| place.0).ok()?;
        let (_, start, len) = *self.places.get(at)?;
        let start = usize::try_from(start).ok()?;
        let end = start + usize::try_from(len).ok()?;
        core::str::from_utf8(self.bytes.get(start..end)?).ok()
    }

    /// All of them, by rising `op_id`.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.places.iter().filter_map(|place| Some((place.0, self.get(place.0)?)))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

impl FromIterator<(u32, String)> for Names {
    fn from_iter<I: IntoIterator<Item = (u32, String)>>(named: I) -> Self {
        let named: Vec<(u32, String)> = named.into_iter().collect();
        Self::new(named.iter().map(|(op_id, name)| (*op_id, name.as_str())))
    }
}

/// As much of `name` as a record holds.
fn cut(name: &str) -> &str {
    let mut end = name.len().min(MOST_NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_read_back_and_are_found_by_operation() {
        let long = "é".repeat(200);
        let names = Names::new([(7, "/b/Conv"), (2, "/a"), (7, "again"), (9, &long)]);
        assert_eq!(names.get(7), Some("/b/Conv"));
        assert_eq!((names.get(2), names.get(3)), (Some("/a"), None));
        assert_eq!(names.get(9).map(str::len), Some(254), "cut between two characters");
        assert_eq!(Names::from_bytes(names.as_bytes().to_vec()).unwrap(), names);
        assert_eq!(names.iter().map(|(op_id, _)| op_id).collect::<Vec<_>>(), [2, 7, 9]);
    }

    #[test]
    fn more_than_there_is_room_for_are_left_out_and_refused() {
        let name = "n".repeat(250);
        let names = Names::new((0..5000).map(|op_id| (op_id, name.as_str())));
        assert!(names.as_bytes().len() <= MOST_BYTES && names.get(4000).is_some());
        assert_eq!(names.get(4999), None);
        let found = MOST_BYTES + 1;
        let refused = Names::from_bytes(alloc::vec![0; found]);
        assert_eq!(refused, Err(NamesError::TooLong { found }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60), at in 0_usize..40) {
            let mut near = Names::new([(1, "one"), (5, "five"), (6, "")]).as_bytes().to_vec();
            if let (Some(to), Some(from)) = (near.get_mut(at), bytes.first()) {
                *to = *from;
            }
            for bytes in [bytes, near] {
                if let Ok(names) = Names::from_bytes(bytes.clone()) {
                    prop_assert_eq!(names.as_bytes(), bytes);
                    prop_assert_eq!(names.iter().count(), names.places.len());
                }
            }
        }
    }
}

//! NumPy's `.npy` files: one tensor, dense and row-major.

use anyhow::{Context as _, Result, bail, ensure};
use ep_npu::graph::ElementType;
use std::path::Path;

/// First bytes of a file.
const MAGIC: &[u8] = b"\x93NUMPY";
/// Bytes of a header at most; a real one has about a hundred.
const MOST_HEADER: usize = 1 << 16;

/// A tensor of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Array {
    pub(crate) element: ElementType,
    pub(crate) shape: Vec<usize>,
    /// Elements, little-endian.
    pub(crate) bytes: Vec<u8>,
}

/// NumPy's name for each element type.
const TYPES: [(&str, ElementType); 5] = [
    ("<f4", ElementType::F32),
    ("|u1", ElementType::U8),
    ("|i1", ElementType::I8),
    ("<i4", ElementType::I32),
    ("<i8", ElementType::I64),
];

impl Array {
    /// The array in the file at `path`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path)
            .with_context(|| format!("cannot read {}; save it with numpy.save", path.display()))?;
        Self::from_bytes(&bytes).with_context(|| format!("cannot use {}", path.display()))
    }

    /// Writes the array to the file at `path`.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.to_bytes()?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let rest =
            bytes.strip_prefix(MAGIC).context("it is no .npy file: the first bytes differ")?;
        let (&[major, _], rest) = rest.split_first_chunk().context("it ends in its header")?;
        let (len, rest) = match major {
            1 => {
                let (len, rest) = rest.split_first_chunk().context("it ends in its header")?;
                (usize::from(u16::from_le_bytes(*len)), rest)
            }
            2 | 3 => {
                let (len, rest) = rest.split_first_chunk().context("it ends in its header")?;
                (usize::try_from(u32::from_le_bytes(*len))?, rest)
            }
            other => bail!("its format is version {other}; 1 to 3 are known"),
        };
        ensure!(len <= MOST_HEADER.min(rest.len()), "its header of {len} bytes is cut off");
        let (header, data) = rest.split_at(len);
        let header = std::str::from_utf8(header).context("its header is not text")?;
        let element = element(field(header, "descr")?)?;
        let order = field(header, "fortran_order")?;
        ensure!(order.starts_with("False"), "it is column-major; save numpy.ascontiguousarray(x)");
        let shape = shape(field(header, "shape")?)?;
        let size = element.bytes().unwrap_or(1);
        let want = shape.iter().try_fold(size, |count, &len| count.checked_mul(len));
        ensure!(
            want == Some(data.len()),
            "it has {} bytes of elements, its shape {shape:?} asks for {want:?}",
            data.len()
        );
        Ok(Self { element, shape, bytes: data.to_vec() })
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        let known = TYPES.iter().find(|(_, element)| *element == self.element);
        let (name, _) = known.with_context(|| format!("no .npy form of {}", self.element))?;
        let lengths: Vec<String> = self.shape.iter().map(|len| format!("{len},")).collect();
        let dict = format!(
            "{{'descr': '{name}', 'fortran_order': False, 'shape': ({}), }}",
            lengths.concat()
        );
        // Elements start at a multiple of 64.
        let head = MAGIC.len() + 4;
        let padded = (head + dict.len() + 1).next_multiple_of(64) - head - 1;
        let header = format!("{dict:padded$}\n");
        let len = u16::try_from(header.len()).context("too many dimensions for a .npy file")?;
        Ok([MAGIC, &[1, 0], &len.to_le_bytes(), header.as_bytes(), &self.bytes].concat())
    }
}

/// What follows `'name':` in the header.
fn field<'h>(header: &'h str, name: &str) -> Result<&'h str> {
    let (_, value) = header
        .split_once(&format!("'{name}':"))
        .with_context(|| format!("its header has no '{name}'"))?;
    Ok(value.trim_start())
}

fn element(value: &str) -> Result<ElementType> {
    let name = value.strip_prefix('\'').and_then(|rest| rest.split('\'').next());
    let name = name.context("its elements are records; one number each is wanted")?;
    let known = TYPES.iter().find(|(known, _)| *known == name).map(|&(_, element)| element);
    known.with_context(|| {
        format!("its elements are {name:?}; float32, uint8, int8, int32 and int64 are known")
    })
}

fn shape(value: &str) -> Result<Vec<usize>> {
    let inner = value.strip_prefix('(').and_then(|rest| rest.split(')').next());
    let inner = inner.context("its shape is no tuple")?;
    let lengths = inner.split(',').map(str::trim).filter(|length| !length.is_empty());
    lengths.map(|length| length.parse().context("its shape has no numbers")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(element: ElementType, shape: &[usize]) -> Array {
        let count = shape.iter().product::<usize>() * element.bytes().unwrap();
        let bytes = (0..count).map(|index| (index % 251).to_le_bytes()[0]).collect();
        Array { element, shape: shape.to_vec(), bytes }
    }

    #[test]
    fn what_is_written_is_read() {
        for (_, element) in TYPES {
            for shape in [&[][..], &[7], &[1, 3, 2, 2], &[0, 4]] {
                let array = array(element, shape);
                let bytes = array.to_bytes().unwrap();
                assert_eq!(Array::from_bytes(&bytes).unwrap(), array);
                assert_eq!((bytes.len() - array.bytes.len()) % 64, 0);
            }
        }
    }

    #[test]
    fn any_damage_is_an_error_or_another_array() {
        let whole = array(ElementType::F32, &[2, 3]).to_bytes().unwrap();
        for len in 0..whole.len() {
            assert!(Array::from_bytes(&whole[..len]).is_err());
        }
        for index in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[index / 8] ^= 1 << (index % 8);
            let _ = Array::from_bytes(&bytes);
        }
        let huge = String::from_utf8_lossy(&whole).replace("(2,3,)", "(9999999999999999,9999,)");
        assert!(Array::from_bytes(huge.as_bytes()).is_err());
    }
}

//! Tensors of the caller, as a run sees them. Unsafe: they are addresses.

use crate::graph::ElementType;
use std::marker::PhantomData;
use zerocopy::{FromBytes, IntoBytes};

/// A tensor to read: dense, row-major, wherever the caller has it.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a> {
    element: ElementType,
    shape: &'a [usize],
    data: *const u8,
    len_bytes: usize,
    lifetime: PhantomData<&'a [u8]>,
}

impl<'a> TensorRef<'a> {
    /// The tensor at `data`. Whether its length fits its shape is checked when it is used.
    ///
    /// # Safety
    ///
    /// The bytes are valid and unwritten for `'a`.
    pub const unsafe fn from_raw(
        element: ElementType,
        shape: &'a [usize],
        data: *const u8,
        len_bytes: usize,
    ) -> Self {
        Self { element, shape, data, len_bytes, lifetime: PhantomData }
    }

    /// A tensor of codes.
    pub const fn from_u8(shape: &'a [usize], codes: &'a [u8]) -> Self {
        // SAFETY: a slice is valid and unwritten as long as it is borrowed.
        unsafe { Self::from_raw(ElementType::U8, shape, codes.as_ptr(), codes.len()) }
    }

    /// A tensor of floats.
    pub const fn from_f32(shape: &'a [usize], floats: &'a [f32]) -> Self {
        let (data, len_bytes) = (floats.as_ptr().cast(), size_of_val(floats));
        // SAFETY: a slice is valid and unwritten as long as it is borrowed.
        unsafe { Self::from_raw(ElementType::F32, shape, data, len_bytes) }
    }

    /// Bytes of any element type that a model can have.
    pub const fn from_bytes(element: ElementType, shape: &'a [usize], bytes: &'a [u8]) -> Self {
        // SAFETY: as above.
        unsafe { Self::from_raw(element, shape, bytes.as_ptr(), bytes.len()) }
    }

    /// Element type.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Shape.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Where it lies.
    pub fn as_ptr(&self) -> *const u8 {
        self.data
    }
}

/// Who has memory for outputs, once their shape is known.
///
/// # Safety
///
/// What [`Outputs::output`] returns is valid for writing as many bytes as the element type and shape
/// ask for, until the run returns, and nothing else touches it until then.
pub unsafe trait Outputs {
    /// Memory for output `index`. Called once for each, in order.
    fn output(
        &mut self,
        index: usize,
        element: ElementType,
        shape: &[usize],
    ) -> Result<*mut u8, String>;
}

/// A tensor to write: dense, row-major, wherever the caller has it.
#[derive(Debug)]
pub struct TensorMut<'a> {
    element: ElementType,
    shape: &'a [usize],
    data: *mut u8,
    len_bytes: usize,
    lifetime: PhantomData<&'a mut [u8]>,
}

impl<'a> TensorMut<'a> {
    /// The tensor at `data`. Whether it is what a model gives is checked when it is used.
    ///
    /// # Safety
    ///
    /// The bytes are valid and nobody else's for `'a`, and any bits are values of the element type.
    pub const unsafe fn from_raw(
        element: ElementType,
        shape: &'a [usize],
        data: *mut u8,
        len_bytes: usize,
    ) -> Self {
        Self { element, shape, data, len_bytes, lifetime: PhantomData }
    }

    /// A tensor of codes.
    pub const fn from_u8(shape: &'a [usize], codes: &'a mut [u8]) -> Self {
        // SAFETY: a slice is valid and nobody else's as long as it is borrowed.
        unsafe { Self::from_raw(ElementType::U8, shape, codes.as_mut_ptr(), codes.len()) }
    }

    /// A tensor of floats.
    pub const fn from_f32(shape: &'a [usize], floats: &'a mut [f32]) -> Self {
        let (len_bytes, data) = (size_of_val(floats), floats.as_mut_ptr().cast());
        // SAFETY: as above; any bits are a float.
        unsafe { Self::from_raw(ElementType::F32, shape, data, len_bytes) }
    }

    /// Copies `tensor`, which must be of the same type and shape.
    #[cfg(feature = "onnx")]
    pub(crate) fn copy_from(&mut self, tensor: &OwnedTensor) -> Result<(), String> {
        let data = self.data_for(tensor.element, &tensor.shape)?;
        let bytes = tensor.bytes();
        // SAFETY: `data_for` has checked that the caller's memory is as long, and it is nobody else's.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len()) };
        Ok(())
    }

    /// Where to write a tensor of this type and shape.
    fn data_for(&self, element: ElementType, shape: &[usize]) -> Result<*mut u8, String> {
        let Self { element: my_element, shape: my_shape, len_bytes, .. } = *self;
        if (my_element, my_shape) != (element, shape) {
            return Err(format!(
                "the model gives {element}{shape:?}, the tensor given is {my_element}{my_shape:?}"
            ));
        }
        let want = byte_count(element, shape)?;
        if len_bytes != want {
            return Err(format!("the tensor has {len_bytes} bytes, its shape asks for {want}"));
        }
        Ok(self.data)
    }
}

/// Outputs in tensors of the caller: output `i` of the program goes to `tensors[order[i]]`.
#[derive(Debug)]
pub struct GivenOutputs<'g, 'a> {
    tensors: &'g mut [TensorMut<'a>],
    order: &'g [usize],
}

impl<'g, 'a> GivenOutputs<'g, 'a> {
    /// Of these tensors, in this order, in which each stands at most once.
    pub fn new(tensors: &'g mut [TensorMut<'a>], order: &'g [usize]) -> Self {
        Self { tensors, order }
    }
}

// SAFETY: each tensor is the caller's for as long as it is borrowed, and `data_for` has compared its
// type, shape and length with what is asked for.
unsafe impl Outputs for GivenOutputs<'_, '_> {
    fn output(
        &mut self,
        index: usize,
        element: ElementType,
        shape: &[usize],
    ) -> Result<*mut u8, String> {
        let at = self.order.get(index).filter(|at| !self.order[..index].contains(at));
        match at.and_then(|&at| self.tensors.get(at)) {
            Some(tensor) => tensor.data_for(element, shape),
            None => Err("no tensor is given for it".to_owned()),
        }
    }
}

/// Outputs in memory of their own.
#[derive(Debug, Default)]
pub struct OwnedOutputs {
    tensors: Vec<OwnedTensor>,
}

/// A tensor with its elements.
#[derive(Clone, Debug)]
pub struct OwnedTensor {
    element: ElementType,
    shape: Vec<usize>,
    // Words, so that floats are aligned.
    words: Vec<u64>,
    len_bytes: usize,
}

impl Default for OwnedTensor {
    /// No elements.
    fn default() -> Self {
        Self { element: ElementType::U8, shape: vec![0], words: Vec::new(), len_bytes: 0 }
    }
}

impl OwnedTensor {
    /// A tensor of zeros.
    fn zeros(element: ElementType, shape: &[usize]) -> Result<Self, String> {
        let len_bytes = byte_count(element, shape)?;
        let words = vec![0; len_bytes.div_ceil(8)];
        Ok(Self { element, shape: shape.to_vec(), words, len_bytes })
    }

    /// What `tensor` holds.
    #[cfg(feature = "onnx")]
    pub(crate) fn copy_of(tensor: &TensorRef<'_>) -> Self {
        // SAFETY: a `TensorRef` is valid for reads of its length as long as it lives.
        let bytes = unsafe { std::slice::from_raw_parts(tensor.data, tensor.len_bytes) };
        Self::of_bytes(tensor.element, tensor.shape, bytes)
    }

    /// What a constant holds.
    #[cfg(feature = "onnx")]
    pub(crate) fn from_constant(constant: &crate::graph::Tensor) -> Self {
        Self::of_bytes(constant.element, &constant.shape, &constant.bytes)
    }

    #[cfg(feature = "onnx")]
    fn of_bytes(element: ElementType, shape: &[usize], bytes: &[u8]) -> Self {
        let word = |chunk: &[u8]| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        };
        let words = bytes.chunks(8).map(word).collect();
        Self { element, shape: shape.to_vec(), words, len_bytes: bytes.len() }
    }

    /// Element type.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements as bytes, in this machine's order.
    pub fn bytes(&self) -> &[u8] {
        &self.words.as_bytes()[..self.len_bytes]
    }

    /// The elements, when they are floats.
    pub fn as_f32(&self) -> Option<&[f32]> {
        let is_float = self.element == ElementType::F32;
        is_float.then(|| <[f32]>::ref_from_bytes(self.bytes()).ok()).flatten()
    }

    /// The elements, when they are unsigned codes.
    pub fn as_u8(&self) -> Option<&[u8]> {
        (self.element == ElementType::U8).then(|| self.bytes())
    }

    /// The tensor, to read.
    pub fn as_ref(&self) -> TensorRef<'_> {
        let data = self.words.as_ptr().cast();
        // SAFETY: the words have at least that many bytes, and are borrowed as long as the reference.
        unsafe { TensorRef::from_raw(self.element, &self.shape, data, self.len_bytes) }
    }
}

impl OwnedOutputs {
    /// The bytes of output `index`, if a run has written it.
    pub fn bytes(&self, index: usize) -> Option<Vec<u8>> {
        self.tensors.get(index).map(|tensor| tensor.bytes().to_vec())
    }

    /// The shape of output `index`.
    pub fn shape(&self, index: usize) -> Option<&[usize]> {
        self.tensors.get(index).map(OwnedTensor::shape)
    }

    /// The tensors, in order.
    pub fn into_tensors(self) -> Vec<OwnedTensor> {
        self.tensors
    }
}

// SAFETY: each output is a vector of its own with at least that many bytes; pushing another moves the
// vector's header, not its contents.
unsafe impl Outputs for OwnedOutputs {
    fn output(
        &mut self,
        index: usize,
        element: ElementType,
        shape: &[usize],
    ) -> Result<*mut u8, String> {
        if index == 0 {
            self.tensors.clear();
        }
        let mut tensor = OwnedTensor::zeros(element, shape)?;
        let data = tensor.words.as_mut_ptr();
        self.tensors.push(tensor);
        Ok(data.cast())
    }
}

fn byte_count(element: ElementType, shape: &[usize]) -> Result<usize, String> {
    let bytes = element.bytes().ok_or_else(|| format!("no memory for {element}"))?;
    let count = shape.iter().try_fold(bytes, |count, &len| count.checked_mul(len));
    count.ok_or_else(|| format!("no memory for shape {shape:?}"))
}

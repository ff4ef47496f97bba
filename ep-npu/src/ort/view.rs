//! Borrowed views of what ONNX Runtime lends for the length of a callback: graphs, nodes, values, tensors.
//!
//! A view is made from a raw handle once, in the callback; everything read through it is copied out,
//! so nothing outlives the callback.

use std::ffi::{c_char, c_void};
use std::marker::PhantomData;
use std::ptr;

use ort_sys::{
    OrtGraph, OrtNode, OrtOpAttr, OrtOpAttrType, OrtTensorTypeAndShapeInfo, OrtTypeInfo, OrtValue,
    OrtValueInfo,
};

use crate::graph::{Attribute, Dim, ElementType, TensorType};

use super::api::{Api, call};
use super::status::{Failure, c_text};

/// `ONNX_TYPE_TENSOR`
const TYPE_TENSOR: u32 = 1;
/// `ORT_OP_ATTR_INT`
const KIND_INT: u32 = 1;
/// `ORT_OP_ATTR_STRING`
const KIND_STRING: u32 = 5;

/// A handle of kind `T` that is live for `'a`.
#[derive(Debug)]
pub(crate) struct View<'a, T> {
    raw: *const T,
    api: &'a Api,
    lent: PhantomData<&'a T>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

/// A graph.
pub(crate) type Graph<'a> = View<'a, OrtGraph>;
/// A node.
pub(crate) type Node<'a> = View<'a, OrtNode>;
/// An edge.
pub(crate) type ValueInfo<'a> = View<'a, OrtValueInfo>;
/// A tensor.
pub(crate) type Value<'a> = View<'a, OrtValue>;

/// Calls a slot that writes one C string, and copies it.
macro_rules! name_of {
    ($view:expr, $slot:ident) => {{
        let mut text: *const c_char = ptr::null();
        call!($view.api, $slot($view.raw, &raw mut text))
            // SAFETY: the runtime wrote a string that lives as long as the handle.
            .map(|()| unsafe { Api::text(text) })
    }};
}

/// Calls a pair of slots, the count and the array, and wraps what they give.
macro_rules! list_of {
    ($view:expr, $count:ident, $list:ident) => {{
        let mut count = 0;
        call!($view.api, $count($view.raw, &raw mut count)).and_then(|()| {
            let mut list = vec![ptr::null(); count];
            call!($view.api, $list($view.raw, list.as_mut_ptr(), count)).map(|()| list)
        })
    }};
}

/// An array that a callback is passed; empty for null.
///
/// # Safety
/// `start` is null or the first of `len` values that are live and unwritten for `'a`.
pub(crate) unsafe fn array<'a, T>(start: *const T, len: usize) -> &'a [T] {
    if start.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(start, len) }
}

impl<'a, T> View<'a, T> {
    /// `None` for null.
    ///
    /// # Safety
    /// `raw` is null, or a handle of the runtime of `api` that is live for `'a`.
    pub(crate) unsafe fn new(api: &'a Api, raw: *const T) -> Option<Self> {
        (!raw.is_null()).then_some(Self { raw, api, lent: PhantomData })
    }

    /// The handle itself.
    pub(crate) fn raw(self) -> *const T {
        self.raw
    }

    /// A handle that the runtime gave out for this one, live as long as it.
    fn lend<U>(self, raw: *const U) -> Option<View<'a, U>> {
        (!raw.is_null()).then_some(View { raw, api: self.api, lent: PhantomData })
    }

    fn lend_all<U>(self, list: Vec<*const U>) -> Vec<Option<View<'a, U>>> {
        list.into_iter().map(|raw| self.lend(raw)).collect()
    }
}

impl<'a> Graph<'a> {
    pub(crate) fn name(self) -> Result<String, Failure> {
        name_of!(self, Graph_GetName)
    }

    /// Whether this is the body of a node of another graph.
    pub(crate) fn is_nested(self) -> Result<bool, Failure> {
        let mut parent = ptr::null();
        call!(self.api, Graph_GetParentNode(self.raw, &raw mut parent))?;
        Ok(!parent.is_null())
    }

    /// Path of the model's file; empty when it was given as bytes.
    pub(crate) fn model_path(self) -> Result<String, Failure> {
        let mut path = ptr::null();
        call!(self.api, Graph_GetModelPath(self.raw, &raw mut path))?;
        // SAFETY: the runtime wrote a string that lives as long as the graph.
        Ok(unsafe { Api::text(path) })
    }

    /// The nodes in a topological order that does not change.
    pub(crate) fn nodes(self) -> Result<Vec<Node<'a>>, Failure> {
        let list = list_of!(self, Graph_GetNumNodes, Graph_GetNodes)?;
        Ok(self.lend_all(list).into_iter().flatten().collect())
    }

    pub(crate) fn inputs(self) -> Result<Vec<ValueInfo<'a>>, Failure> {
        let list = list_of!(self, Graph_GetNumInputs, Graph_GetInputs)?;
        Ok(self.lend_all(list).into_iter().flatten().collect())
    }

    pub(crate) fn outputs(self) -> Result<Vec<ValueInfo<'a>>, Failure> {
        let list = list_of!(self, Graph_GetNumOutputs, Graph_GetOutputs)?;
        Ok(self.lend_all(list).into_iter().flatten().collect())
    }
}

impl<'a> Node<'a> {
    pub(crate) fn name(self) -> Result<String, Failure> {
        name_of!(self, Node_GetName)
    }

    pub(crate) fn op(self) -> Result<String, Failure> {
        name_of!(self, Node_GetOperatorType)
    }

    pub(crate) fn domain(self) -> Result<String, Failure> {
        name_of!(self, Node_GetDomain)
    }

    /// The provider that has the node already; empty when none has.
    pub(crate) fn owner(self) -> Result<String, Failure> {
        name_of!(self, Node_GetEpName)
    }

    /// Inputs, `None` for an absent optional one.
    pub(crate) fn inputs(self) -> Result<Vec<Option<ValueInfo<'a>>>, Failure> {
        let list = list_of!(self, Node_GetNumInputs, Node_GetInputs)?;
        Ok(self.lend_all(list))
    }

    /// What the bodies of an If, Loop or Scan read of the graph around them.
    pub(crate) fn implicit_inputs(self) -> Result<Vec<Option<ValueInfo<'a>>>, Failure> {
        let list = list_of!(self, Node_GetNumImplicitInputs, Node_GetImplicitInputs)?;
        Ok(self.lend_all(list))
    }

    /// Outputs, `None` for an absent optional one.
    pub(crate) fn outputs(self) -> Result<Vec<Option<ValueInfo<'a>>>, Failure> {
        let list = list_of!(self, Node_GetNumOutputs, Node_GetOutputs)?;
        Ok(self.lend_all(list))
    }

    /// The bytes of attribute `name`, if it is there and a string.
    pub(crate) fn bytes_attribute(self, name: &str) -> Result<Option<Vec<u8>>, Failure> {
        let string = |attribute: View<'_, OrtOpAttr>| match attribute.kind()? {
            KIND_STRING => attribute.many(OrtOpAttrType::ORT_OP_ATTR_STRING).map(Some),
            _ => Ok(None),
        };
        self.attribute(name).map_or(Ok(None), string)
    }

    /// Attribute `name`, if it is there and an integer.
    pub(crate) fn int_attribute(self, name: &str) -> Result<Option<i64>, Failure> {
        let integer = |attribute: View<'_, OrtOpAttr>| match attribute.kind()? {
            KIND_INT => attribute.one(OrtOpAttrType::ORT_OP_ATTR_INT).map(Some),
            _ => Ok(None),
        };
        self.attribute(name).map_or(Ok(None), integer)
    }

    fn attribute(self, name: &str) -> Option<View<'a, OrtOpAttr>> {
        let mut raw = ptr::null();
        let name = c_text(name);
        // An absent attribute is an error to some versions of the runtime and null to others.
        call!(self.api, Node_GetAttributeByName(self.raw, name.as_ptr(), &raw mut raw)).ok()?;
        self.lend(raw)
    }

    /// Attributes by name, with the defaults of the operator's schema filled in.
    pub(crate) fn attributes(self) -> Result<Vec<(String, Attribute)>, Failure> {
        let list = list_of!(self, Node_GetNumAttributes, Node_GetAttributes)?;
        let read = |attribute: View<'a, OrtOpAttr>| {
            let name = name_of!(attribute, OpAttr_GetName)?;
            let value = attribute.read().map_err(|e| e.within(&format!("attribute `{name}`")))?;
            Ok((name, value))
        };
        self.lend_all(list).into_iter().flatten().map(read).collect()
    }
}

impl View<'_, OrtOpAttr> {
    fn read(self) -> Result<Attribute, Failure> {
        Ok(match self.kind()? {
            KIND_INT => Attribute::Int(self.one(OrtOpAttrType::ORT_OP_ATTR_INT)?),
            2 => Attribute::Ints(self.many(OrtOpAttrType::ORT_OP_ATTR_INTS)?),
            3 => Attribute::Float(self.one(OrtOpAttrType::ORT_OP_ATTR_FLOAT)?),
            4 => Attribute::Floats(self.many(OrtOpAttrType::ORT_OP_ATTR_FLOATS)?),
            KIND_STRING => {
                let bytes: Vec<u8> = self.many(OrtOpAttrType::ORT_OP_ATTR_STRING)?;
                Attribute::String(String::from_utf8_lossy(&bytes).into_owned())
            }
            _ => Attribute::Other,
        })
    }

    fn kind(self) -> Result<u32, Failure> {
        let mut kind = 0_u32;
        call!(self.api, OpAttr_GetType(self.raw, (&raw mut kind).cast()))?;
        Ok(kind)
    }

    fn one<T: Copy + Default>(self, kind: OrtOpAttrType) -> Result<T, Failure> {
        let mut value = T::default();
        let mut len = 0;
        let data = (&raw mut value).cast::<c_void>();
        call!(self.api, ReadOpAttr(self.raw, kind, data, size_of::<T>(), &raw mut len))?;
        Ok(value)
    }

    fn many<T: Copy + Default>(self, kind: OrtOpAttrType) -> Result<Vec<T>, Failure> {
        let mut len = 0;
        // Asked with no room, it fails and says how many bytes it needs.
        let asked = call!(self.api, ReadOpAttr(self.raw, kind, ptr::null_mut(), 0, &raw mut len));
        if len == 0 {
            return asked.map(|()| Vec::new()).or_else(|_| Ok(Vec::new()));
        }
        let mut values = vec![T::default(); len / size_of::<T>()];
        let data = values.as_mut_ptr().cast::<c_void>();
        let room = values.len() * size_of::<T>();
        call!(self.api, ReadOpAttr(self.raw, kind, data, room, &raw mut len))?;
        Ok(values)
    }
}

impl<'a> ValueInfo<'a> {
    pub(crate) fn name(self) -> Result<String, Failure> {
        name_of!(self, GetValueInfoName)
    }

    /// Element type and shape; `None` when the model says nothing, or it is no tensor.
    pub(crate) fn tensor_type(self) -> Result<Option<TensorType>, Failure> {
        let mut info: *const OrtTypeInfo = ptr::null();
        call!(self.api, GetValueInfoTypeInfo(self.raw, &raw mut info))?;
        // SAFETY: the type lives as long as the value's handle.
        unsafe { tensor_type(self.api, info) }
    }

    /// The tensor that the value always holds, if it is a constant of this graph or of one around it.
    pub(crate) fn constant(self) -> Result<Option<Value<'a>>, Failure> {
        let mut constant = false;
        call!(self.api, ValueInfo_IsConstantInitializer(self.raw, &raw mut constant))?;
        if !constant {
            return Ok(None);
        }
        let mut value = ptr::null();
        call!(self.api, ValueInfo_GetInitializerValue(self.raw, &raw mut value))?;
        Ok(self.lend(value))
    }
}

/// Element type and shape of a tensor's type; `None` when it is no tensor's.
///
/// # Safety
/// `info` is null or live.
pub(super) unsafe fn tensor_type(
    api: &Api,
    info: *const OrtTypeInfo,
) -> Result<Option<TensorType>, Failure> {
    if info.is_null() {
        return Ok(None);
    }
    let mut kind = 0_u32;
    call!(api, GetOnnxTypeFromTypeInfo(info, (&raw mut kind).cast()))?;
    if kind != TYPE_TENSOR {
        return Ok(None);
    }
    let mut tensor: *const OrtTensorTypeAndShapeInfo = ptr::null();
    call!(api, CastTypeInfoToTensorInfo(info, &raw mut tensor))?;
    if tensor.is_null() {
        return Ok(None);
    }
    let tensor = View { raw: tensor, api, lent: PhantomData };
    let symbols = tensor.symbols()?;
    let dims = tensor.dims()?.into_iter().zip(symbols);
    let dim = |(len, symbol)| usize::try_from(len).map_or(Dim::Symbol(symbol), Dim::Known);
    let shape: Vec<Dim> = dims.map(dim).collect();
    let shape = if shape.is_empty() && !tensor.has_shape() { None } else { Some(shape) };
    Ok(Some(TensorType { element: tensor.element()?, shape }))
}

impl View<'_, OrtTensorTypeAndShapeInfo> {
    fn element(self) -> Result<ElementType, Failure> {
        let mut code = 0_u32;
        call!(self.api, GetTensorElementType(self.raw, (&raw mut code).cast()))?;
        Ok(ElementType::from_onnx(code))
    }

    /// Whether a type without dimensions is of a scalar, and not of a tensor of any rank. Before version
    /// 24 nobody knows, and it is taken for the latter.
    fn has_shape(self) -> bool {
        if self.api.version() < 24 {
            return false;
        }
        // SAFETY: the table is of a version that has the slot.
        let has_shape = unsafe { (*self.api.ort()).TensorTypeAndShape_HasShape };
        // SAFETY: the type is live.
        unsafe { has_shape(self.raw) }
    }

    /// Lengths; negative where unknown.
    fn dims(self) -> Result<Vec<i64>, Failure> {
        let mut rank = 0;
        call!(self.api, GetDimensionsCount(self.raw, &raw mut rank))?;
        let mut dims = vec![0_i64; rank];
        call!(self.api, GetDimensions(self.raw, dims.as_mut_ptr(), rank))?;
        Ok(dims)
    }

    /// Names of the dimensions; empty where there is none.
    fn symbols(self) -> Result<Vec<String>, Failure> {
        let mut rank = 0;
        call!(self.api, GetDimensionsCount(self.raw, &raw mut rank))?;
        let mut names = vec![ptr::null(); rank];
        call!(self.api, GetSymbolicDimensions(self.raw, names.as_mut_ptr(), rank))?;
        // SAFETY: the runtime wrote strings that live as long as the type.
        Ok(names.into_iter().map(|name| unsafe { Api::text(name) }).collect())
    }
}

/// Element type and shape of a tensor that exists.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Shape {
    pub(crate) element: ElementType,
    pub(crate) dims: Vec<usize>,
}

impl Shape {
    /// Bytes of the tensor; `None` for an element type of unknown size, or an absurd shape.
    pub(crate) fn bytes(&self) -> Option<usize> {
        let count = self.dims.iter().try_fold(1_usize, |n, &len| n.checked_mul(len))?;
        count.checked_mul(self.element.bytes()?)
    }
}

impl<'a> Value<'a> {
    pub(crate) fn shape(self) -> Result<Shape, Failure> {
        let mut info: *mut OrtTensorTypeAndShapeInfo = ptr::null_mut();
        call!(self.api, GetTensorTypeAndShape(self.raw, &raw mut info))?;
        let Some(view) = self.lend(info.cast_const()) else {
            return Err(Failure::provider("a tensor without type"));
        };
        let read = view.dims().and_then(|dims| Ok((view.element()?, dims)));
        let table = self.api.ort();
        // SAFETY: the slot is in every version.
        let release = unsafe { (*table).ReleaseTensorTypeAndShapeInfo };
        // SAFETY: the call above made the info for us, and `view` is not used again.
        unsafe { release(info) };
        let (element, dims) = read?;
        let known = |len: i64| {
            usize::try_from(len)
                .map_err(|_| Failure::provider(format!("dimension {len} of a tensor")))
        };
        Ok(Shape { element, dims: dims.into_iter().map(known).collect::<Result<_, _>>()? })
    }

    /// The elements, where they are; not for strings.
    pub(crate) fn data(self) -> Result<*const u8, Failure> {
        let mut data: *const c_void = ptr::null();
        call!(self.api, GetTensorData(self.raw, &raw mut data))?;
        Ok(data.cast())
    }

    /// The bytes of a tensor of `shape`.
    pub(crate) fn bytes(self, shape: &Shape) -> Result<&'a [u8], Failure> {
        let len = shape.bytes().ok_or_else(|| {
            Failure::invalid_graph(format!("a tensor {}{:?}", shape.element, shape.dims))
        })?;
        let data = self.data()?;
        if len == 0 {
            return Ok(&[]);
        }
        if data.is_null() {
            return Err(Failure::provider(format!("a tensor of {len} bytes without data")));
        }
        // SAFETY: the tensor has `len` bytes by its own shape, is initialised, and nobody writes it
        // during the callback.
        Ok(unsafe { std::slice::from_raw_parts(data, len) })
    }
}

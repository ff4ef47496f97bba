//! The messages of an ONNX file, as onnx.proto numbers them; fields that nothing here reads, and no part
//! of a model needs to be written again, are left out.
//!
//! Bytes are views of the buffer that was decoded. Lengths and enumerations are as the file has them:
//! nothing is checked here.

use bytes::Bytes;
use prost::Message;

/// `ModelProto`
#[derive(Clone, PartialEq, Message)]
pub struct Model {
    /// Version of the format.
    #[prost(int64, optional, tag = "1")]
    pub ir_version: Option<i64>,
    /// Who wrote it.
    #[prost(string, optional, tag = "2")]
    pub producer_name: Option<String>,
    /// The graph.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    /// Version of each domain's operators.
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSet>,
    /// Operators that the model defines by graphs of its own.
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<Function>,
}

/// `OperatorSetIdProto`
#[derive(Clone, PartialEq, Message)]
pub struct OperatorSet {
    /// Domain; empty for ONNX.
    #[prost(string, optional, tag = "1")]
    pub domain: Option<String>,
    /// Version.
    #[prost(int64, optional, tag = "2")]
    pub version: Option<i64>,
}

/// `FunctionProto`
#[derive(Clone, PartialEq, Message)]
pub struct Function {
    /// Operator that it defines.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// Names of its inputs.
    #[prost(string, repeated, tag = "4")]
    pub input: Vec<String>,
    /// Names of its outputs.
    #[prost(string, repeated, tag = "5")]
    pub output: Vec<String>,
    /// Names of attributes without default.
    #[prost(string, repeated, tag = "6")]
    pub attribute: Vec<String>,
    /// The body.
    #[prost(message, repeated, tag = "7")]
    pub node: Vec<Node>,
    /// Versions of the operators in the body.
    #[prost(message, repeated, tag = "9")]
    pub opset_import: Vec<OperatorSet>,
    /// Domain.
    #[prost(string, optional, tag = "10")]
    pub domain: Option<String>,
    /// Attributes with a default.
    #[prost(message, repeated, tag = "11")]
    pub attribute_proto: Vec<Attribute>,
    /// Which of several functions of one name.
    #[prost(string, optional, tag = "13")]
    pub overload: Option<String>,
}

/// `GraphProto`
#[derive(Clone, PartialEq, Message)]
pub struct Graph {
    /// Operators.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<Node>,
    /// Name.
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    /// Constants.
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<Tensor>,
    /// Inputs, in order.
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfo>,
    /// Outputs, in order.
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfo>,
    /// What is known of the tensors between.
    #[prost(message, repeated, tag = "13")]
    pub value_info: Vec<ValueInfo>,
    /// Constants that are mostly zero.
    #[prost(message, repeated, tag = "15")]
    pub sparse_initializer: Vec<SparseTensor>,
}

/// `NodeProto`
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    /// Names of the inputs; empty for an absent one.
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    /// Names of the outputs; empty for an absent one.
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    /// Name.
    #[prost(string, optional, tag = "3")]
    pub name: Option<String>,
    /// Operator.
    #[prost(string, optional, tag = "4")]
    pub op_type: Option<String>,
    /// Attributes.
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<Attribute>,
    /// Domain of the operator.
    #[prost(string, optional, tag = "7")]
    pub domain: Option<String>,
    /// Which of several functions of one name.
    #[prost(string, optional, tag = "8")]
    pub overload: Option<String>,
}

/// `AttributeProto`
#[derive(Clone, PartialEq, Message)]
pub struct Attribute {
    /// Name.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// `FLOAT`
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    /// `INT`
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    /// `STRING`
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub s: Option<Bytes>,
    /// `TENSOR`
    #[prost(message, optional, tag = "5")]
    pub t: Option<Tensor>,
    /// `GRAPH`
    #[prost(message, optional, boxed, tag = "6")]
    pub g: Option<Box<Graph>>,
    /// `FLOATS`
    #[prost(float, repeated, packed = "false", tag = "7")]
    pub floats: Vec<f32>,
    /// `INTS`
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    /// `STRINGS`
    #[prost(bytes = "bytes", repeated, tag = "9")]
    pub strings: Vec<Bytes>,
    /// `TENSORS`
    #[prost(message, repeated, tag = "10")]
    pub tensors: Vec<Tensor>,
    /// `GRAPHS`
    #[prost(message, repeated, tag = "11")]
    pub graphs: Vec<Graph>,
    /// Which of the fields is meant; see [`attribute_type`].
    #[prost(int32, optional, tag = "20")]
    pub r#type: Option<i32>,
    /// The attribute of the function that this one copies.
    #[prost(string, optional, tag = "21")]
    pub ref_attr_name: Option<String>,
}

/// Numbers of `AttributeProto.AttributeType` that are read.
pub mod attribute_type {
    /// `FLOAT`
    pub const FLOAT: i32 = 1;
    /// `INT`
    pub const INT: i32 = 2;
    /// `STRING`
    pub const STRING: i32 = 3;
    /// `TENSOR`
    pub const TENSOR: i32 = 4;
    /// `FLOATS`
    pub const FLOATS: i32 = 6;
    /// `INTS`
    pub const INTS: i32 = 7;
}

/// `TensorProto`
#[derive(Clone, PartialEq, Message)]
pub struct Tensor {
    /// Shape.
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    /// `TensorProto.DataType`
    #[prost(int32, optional, tag = "2")]
    pub data_type: Option<i32>,
    /// Elements, when `float`.
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    /// Elements, when of at most 32 bits.
    #[prost(int32, repeated, tag = "5")]
    pub int32_data: Vec<i32>,
    /// Elements, when strings.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub string_data: Vec<Bytes>,
    /// Elements, when `int64`.
    #[prost(int64, repeated, tag = "7")]
    pub int64_data: Vec<i64>,
    /// Name.
    #[prost(string, optional, tag = "8")]
    pub name: Option<String>,
    /// Elements as bytes, little-endian.
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub raw_data: Option<Bytes>,
    /// Elements, when `double`.
    #[prost(double, repeated, tag = "10")]
    pub double_data: Vec<f64>,
    /// Elements, when `uint32` or `uint64`.
    #[prost(uint64, repeated, tag = "11")]
    pub uint64_data: Vec<u64>,
    /// Where the elements are, when in another file: location, offset, length.
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<Entry>,
    /// 1 when the elements are in another file.
    #[prost(int32, optional, tag = "14")]
    pub data_location: Option<i32>,
}

/// `StringStringEntryProto`
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    /// Key.
    #[prost(string, optional, tag = "1")]
    pub key: Option<String>,
    /// Value.
    #[prost(string, optional, tag = "2")]
    pub value: Option<String>,
}

/// `SparseTensorProto`
#[derive(Clone, PartialEq, Message)]
pub struct SparseTensor {
    /// What is not zero; has the name.
    #[prost(message, optional, tag = "1")]
    pub values: Option<Tensor>,
    /// Where it stands.
    #[prost(message, optional, tag = "2")]
    pub indices: Option<Tensor>,
    /// Shape.
    #[prost(int64, repeated, packed = "false", tag = "3")]
    pub dims: Vec<i64>,
}

/// `ValueInfoProto`
#[derive(Clone, PartialEq, Message)]
pub struct ValueInfo {
    /// Name.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// Type.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<Type>,
}

/// `TypeProto`, when it is a tensor's; of the other kinds there is none.
#[derive(Clone, PartialEq, Message)]
pub struct Type {
    /// A dense tensor.
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorType>,
}

/// `TypeProto.Tensor`
#[derive(Clone, PartialEq, Message)]
pub struct TensorType {
    /// `TensorProto.DataType`
    #[prost(int32, optional, tag = "1")]
    pub elem_type: Option<i32>,
    /// Shape; absent when the rank is unknown.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
}

/// `TensorShapeProto`
#[derive(Clone, PartialEq, Message)]
pub struct Shape {
    /// Dimensions.
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

/// `TensorShapeProto.Dimension`
#[derive(Clone, PartialEq, Message)]
pub struct Dimension {
    /// Length.
    #[prost(int64, optional, tag = "1")]
    pub dim_value: Option<i64>,
    /// Name of an open length.
    #[prost(string, optional, tag = "2")]
    pub dim_param: Option<String>,
}

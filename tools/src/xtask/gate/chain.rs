//! A model of many small operators, one behind the other: what the compiler does for each must not grow
//! with their number.

use ep_npu::import::proto::{
    Dimension, Graph, Model, Node, OperatorSet, Shape, Tensor, TensorType, Type, ValueInfo,
};
use prost::Message as _;

const FLOAT: i32 = 1;
const UINT8: i32 = 2;
const INT8: i32 = 3;
const INT64: i32 = 7;
const CHANNELS: u8 = 16;

/// The ONNX file of a chain of at least so many nodes: convolutions with and without an activation, sums
/// and products of two tensors, functions of one, and changes of shape.
pub(super) fn model(nodes: usize) -> Vec<u8> {
    let mut chain = Chain::default();
    chain.constant("scale", FLOAT, &[], &0.05_f32.to_le_bytes());
    chain.constant("zero", UINT8, &[], &[128]);
    chain.constant("weight scale", FLOAT, &[], &0.01_f32.to_le_bytes());
    chain.constant("weight zero", INT8, &[], &[0]);
    chain.constant("addend", UINT8, &[CHANNELS.into(), 1, 1], &[77; CHANNELS as usize]);
    for (name, rows, columns) in [("wide", 2, 8), ("square", 4, 4)] {
        let shape: Vec<u8> =
            [1, CHANNELS.into(), rows, columns].into_iter().flat_map(i64::to_le_bytes).collect();
        chain.constant(name, INT64, &[4], &shape);
    }
    let mut last = chain.quantised("x".to_owned());
    let mut before = last.clone();
    for step in 0.. {
        if chain.graph.node.len() >= nodes {
            break;
        }
        let next = chain.step(step, &last, &before);
        before = std::mem::replace(&mut last, next);
    }
    let result = chain.floats(&last);
    let dims = [1, CHANNELS.into(), 4, 4]
        .map(|length| Dimension { dim_value: Some(length), dim_param: None });
    let shape = Some(Shape { dim: dims.to_vec() });
    let tensor_type = Some(TensorType { elem_type: Some(FLOAT), shape });
    let edge = |name: String| ValueInfo {
        name: Some(name),
        r#type: Some(Type { tensor_type: tensor_type.clone() }),
    };
    let graph = Graph {
        name: Some("chain".to_owned()),
        input: vec![edge("x".to_owned())],
        output: vec![edge(result)],
        ..chain.graph
    };
    let model = Model {
        ir_version: Some(8),
        graph: Some(graph),
        opset_import: vec![OperatorSet { domain: None, version: Some(17) }],
        ..Model::default()
    };
    model.encode_to_vec()
}

/// The model so far.
#[derive(Default)]
struct Chain {
    graph: Graph,
}

impl Chain {
    fn constant(&mut self, name: &str, element: i32, dims: &[i64], bytes: &[u8]) {
        self.graph.initializer.push(Tensor {
            name: Some(name.to_owned()),
            data_type: Some(element),
            dims: dims.to_vec(),
            raw_data: Some(bytes.to_vec().into()),
            ..Tensor::default()
        });
    }

    /// The result of one more node.
    fn node(&mut self, op: &str, inputs: &[&str]) -> String {
        let count = self.graph.node.len();
        let output = format!("t{count}");
        self.graph.node.push(Node {
            name: Some(format!("n{count}")),
            op_type: Some(op.to_owned()),
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![output.clone()],
            ..Node::default()
        });
        output
    }

    fn quantised(&mut self, floats: String) -> String {
        self.node("QuantizeLinear", &[&floats, "scale", "zero"])
    }

    fn floats(&mut self, codes: &str) -> String {
        self.node("DequantizeLinear", &[codes, "scale", "zero"])
    }

    fn convolution(&mut self, source: &str) -> String {
        let name = format!("w{}", self.graph.node.len());
        let weights: Vec<u8> =
            (0..CHANNELS).flat_map(|row| (0..CHANNELS).map(move |c| row ^ c)).collect();
        let channels = i64::from(CHANNELS);
        self.constant(&name, INT8, &[channels, channels, 1, 1], &weights);
        let source = self.floats(source);
        let weights = self.node("DequantizeLinear", &[&name, "weight scale", "weight zero"]);
        self.node("Conv", &[&source, &weights])
    }

    /// What step number `step` makes of the result before it, and the one before that.
    fn step(&mut self, step: usize, last: &str, before: &str) -> String {
        let result = match step % 8 {
            0 => self.convolution(last),
            1 => {
                let result = self.convolution(last);
                self.node("Relu", &[&result])
            }
            two @ (2 | 3) => {
                let operands = [self.floats(last), self.floats(before)];
                let op = if two == 2 { "Add" } else { "Mul" };
                self.node(op, &[&operands[0], &operands[1]])
            }
            4 => {
                let operands = [self.floats(last), self.floats("addend")];
                self.node("Add", &[&operands[0], &operands[1]])
            }
            5 => {
                let source = self.floats(last);
                self.node("Sigmoid", &[&source])
            }
            turn => {
                let source = self.floats(last);
                self.node("Reshape", &[&source, if turn == 6 { "wide" } else { "square" }])
            }
        };
        self.quantised(result)
    }
}

//! Attributes that a node does not give and its operator's schema does, by version of the operator set.
//!
//! ONNX Runtime fills them in before it shows a graph; so does the importer, so that a rule which reads an
//! attribute finds the same through either door. Operators without a row here have no rule that reads one.

use crate::graph::Attribute;
use std::collections::BTreeMap;

#[derive(Clone, Copy)]
enum Given {
    Int(i64),
    Float(f32),
    Text(&'static str),
    /// The version has none.
    Absent,
}

use Given::{Absent, Float, Int, Text};

/// Gives `attributes` of the ONNX operator `op`, as of operator set `version`, what they lack.
pub(super) fn fill(op: &str, version: i64, attributes: &mut BTreeMap<String, Attribute>) {
    let first = TABLE.partition_point(|row| row.0 < op);
    let of_op = TABLE[first..].iter().take_while(|row| row.0 == op);
    // Rows are in order of version: the last one that holds is the one that counts.
    let held: BTreeMap<&str, Given> =
        of_op.filter(|row| row.2 <= version).map(|row| (row.1, row.3)).collect();
    for (name, value) in held {
        let value = match value {
            Absent => continue,
            Int(value) => Attribute::Int(value),
            Float(value) => Attribute::Float(value),
            Text(value) => Attribute::String(value.to_owned()),
        };
        attributes.entry(name.to_owned()).or_insert(value);
    }
}

/// Operator, attribute, version from which it holds, value.
type Row = (&'static str, &'static str, i64, Given);

/// Sorted by operator, attribute and version.
#[rustfmt::skip]
const TABLE: &[Row] = &[
    ("ArgMax", "axis", 1, Int(0)),
    ("ArgMax", "keepdims", 1, Int(1)),
    ("ArgMax", "select_last_index", 12, Int(0)),
    ("ArgMin", "axis", 1, Int(0)),
    ("ArgMin", "keepdims", 1, Int(1)),
    ("ArgMin", "select_last_index", 12, Int(0)),
    ("AveragePool", "auto_pad", 1, Text("NOTSET")),
    ("AveragePool", "ceil_mode", 10, Int(0)),
    ("AveragePool", "count_include_pad", 7, Int(0)),
    ("BatchNormalization", "epsilon", 1, Float(0.00001)),
    ("BatchNormalization", "is_test", 1, Int(0)),
    ("BatchNormalization", "is_test", 7, Absent),
    ("BatchNormalization", "momentum", 1, Float(0.9)),
    ("BatchNormalization", "spatial", 1, Int(1)),
    ("BatchNormalization", "spatial", 9, Absent),
    ("BatchNormalization", "training_mode", 14, Int(0)),
    ("Cast", "round_mode", 24, Text("up")),
    ("Cast", "saturate", 19, Int(1)),
    ("Celu", "alpha", 12, Float(1.0)),
    ("Clip", "max", 6, Float(3.4028235e+38)),
    ("Clip", "max", 11, Absent),
    ("Clip", "min", 6, Float(-3.4028235e+38)),
    ("Clip", "min", 11, Absent),
    ("Conv", "auto_pad", 1, Text("NOTSET")),
    ("Conv", "group", 1, Int(1)),
    ("ConvTranspose", "auto_pad", 1, Text("NOTSET")),
    ("ConvTranspose", "group", 1, Int(1)),
    ("CumSum", "exclusive", 11, Int(0)),
    ("CumSum", "reverse", 11, Int(0)),
    ("DepthToSpace", "mode", 11, Text("DCR")),
    ("DequantizeLinear", "axis", 13, Int(1)),
    ("DequantizeLinear", "block_size", 21, Int(0)),
    ("DequantizeLinear", "output_dtype", 23, Int(0)),
    ("Dropout", "is_test", 1, Int(0)),
    ("Dropout", "is_test", 7, Absent),
    ("Dropout", "ratio", 1, Float(0.5)),
    ("Dropout", "ratio", 12, Absent),
    ("Elu", "alpha", 1, Float(1.0)),
    ("Flatten", "axis", 1, Int(1)),
    ("GRU", "direction", 1, Text("foward")),
    ("GRU", "direction", 3, Text("forward")),
    ("GRU", "layout", 14, Int(0)),
    ("GRU", "linear_before_reset", 3, Int(0)),
    ("GRU", "output_sequence", 1, Int(0)),
    ("GRU", "output_sequence", 7, Absent),
    ("Gather", "axis", 1, Int(0)),
    ("GatherElements", "axis", 11, Int(0)),
    ("GatherND", "batch_dims", 12, Int(0)),
    ("Gelu", "approximate", 20, Text("none")),
    ("Gemm", "alpha", 1, Float(1.0)),
    ("Gemm", "beta", 1, Float(1.0)),
    ("Gemm", "broadcast", 1, Int(0)),
    ("Gemm", "broadcast", 7, Absent),
    ("Gemm", "transA", 1, Int(0)),
    ("Gemm", "transB", 1, Int(0)),
    ("GroupNormalization", "epsilon", 18, Float(0.00001)),
    ("GroupNormalization", "stash_type", 21, Int(1)),
    ("HardSigmoid", "alpha", 1, Float(0.2)),
    ("HardSigmoid", "beta", 1, Float(0.5)),
    ("InstanceNormalization", "epsilon", 1, Float(0.00001)),
    ("LRN", "alpha", 1, Float(0.0001)),
    ("LRN", "beta", 1, Float(0.75)),
    ("LRN", "bias", 1, Float(1.0)),
    ("LSTM", "direction", 1, Text("forward")),
    ("LSTM", "input_forget", 1, Int(0)),
    ("LSTM", "layout", 14, Int(0)),
    ("LSTM", "output_sequence", 1, Int(0)),
    ("LSTM", "output_sequence", 7, Absent),
    ("LayerNormalization", "axis", 17, Int(-1)),
    ("LayerNormalization", "epsilon", 17, Float(0.00001)),
    ("LayerNormalization", "stash_type", 17, Int(1)),
    ("LeakyRelu", "alpha", 1, Float(0.01)),
    ("LogSoftmax", "axis", 1, Int(1)),
    ("LogSoftmax", "axis", 13, Int(-1)),
    ("LpNormalization", "axis", 1, Int(-1)),
    ("LpNormalization", "p", 1, Int(2)),
    ("MaxPool", "auto_pad", 1, Text("NOTSET")),
    ("MaxPool", "ceil_mode", 10, Int(0)),
    ("MaxPool", "storage_order", 8, Int(0)),
    ("Mod", "fmod", 10, Int(0)),
    ("OneHot", "axis", 9, Int(-1)),
    ("Pad", "mode", 1, Text("constant")),
    ("Pad", "value", 1, Float(0.0)),
    ("Pad", "value", 11, Absent),
    ("QuantizeLinear", "axis", 13, Int(1)),
    ("QuantizeLinear", "block_size", 21, Int(0)),
    ("QuantizeLinear", "output_dtype", 21, Int(0)),
    ("QuantizeLinear", "precision", 23, Int(0)),
    ("QuantizeLinear", "saturate", 19, Int(1)),
    ("ReduceL2", "keepdims", 1, Int(1)),
    ("ReduceL2", "noop_with_empty_axes", 18, Int(0)),
    ("ReduceMax", "keepdims", 1, Int(1)),
    ("ReduceMax", "noop_with_empty_axes", 18, Int(0)),
    ("ReduceMean", "keepdims", 1, Int(1)),
    ("ReduceMean", "noop_with_empty_axes", 18, Int(0)),
    ("ReduceMin", "keepdims", 1, Int(1)),
    ("ReduceMin", "noop_with_empty_axes", 18, Int(0)),
    ("ReduceProd", "keepdims", 1, Int(1)),
    ("ReduceProd", "noop_with_empty_axes", 18, Int(0)),
    ("ReduceSum", "keepdims", 1, Int(1)),
    ("ReduceSum", "noop_with_empty_axes", 13, Int(0)),
    ("ReduceSumSquare", "keepdims", 1, Int(1)),
    ("ReduceSumSquare", "noop_with_empty_axes", 18, Int(0)),
    ("Reshape", "allowzero", 14, Int(0)),
    ("Resize", "antialias", 18, Int(0)),
    ("Resize", "coordinate_transformation_mode", 11, Text("half_pixel")),
    ("Resize", "cubic_coeff_a", 11, Float(-0.75)),
    ("Resize", "exclude_outside", 11, Int(0)),
    ("Resize", "extrapolation_value", 11, Float(0.0)),
    ("Resize", "keep_aspect_ratio_policy", 18, Text("stretch")),
    ("Resize", "mode", 10, Text("nearest")),
    ("Resize", "nearest_mode", 11, Text("round_prefer_floor")),
    ("Selu", "alpha", 1, Float(1.6732)),
    ("Selu", "alpha", 6, Float(1.6732632)),
    ("Selu", "gamma", 1, Float(1.0507)),
    ("Selu", "gamma", 6, Float(1.050701)),
    ("Shape", "start", 15, Int(0)),
    ("Softmax", "axis", 1, Int(1)),
    ("Softmax", "axis", 13, Int(-1)),
    ("Split", "axis", 2, Int(0)),
    ("ThresholdedRelu", "alpha", 10, Float(1.0)),
    ("TopK", "axis", 1, Int(-1)),
    ("TopK", "largest", 11, Int(1)),
    ("TopK", "sorted", 11, Int(1)),
    ("Upsample", "mode", 1, Text("nearest")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_versions_decide() {
        assert!(TABLE.is_sorted_by_key(|row| (row.0, row.1, row.2)));
        let axis = |version| {
            let mut attributes = BTreeMap::new();
            fill("Softmax", version, &mut attributes);
            attributes.remove("axis")
        };
        assert_eq!(axis(12), Some(Attribute::Int(1)));
        assert_eq!(axis(13), Some(Attribute::Int(-1)));
        assert_eq!(axis(22), Some(Attribute::Int(-1)));
    }

    #[test]
    fn what_a_node_gives_stays() {
        let mut attributes = BTreeMap::from([("group".to_owned(), Attribute::Int(4))]);
        fill("Conv", 14, &mut attributes);
        assert_eq!(attributes["group"], Attribute::Int(4));
        assert_eq!(attributes["auto_pad"], Attribute::String("NOTSET".to_owned()));
        fill("Unknown", 14, &mut attributes);
        assert_eq!(attributes.len(), 2);
    }
}

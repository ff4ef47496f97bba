//! Operators without an exact form on the NPU: why each has none.

use crate::graph::Node;

/// Why `node`'s operator is left to the CPU; what would be accepted, where something would, stands behind
/// the semicolon.
pub(super) fn why(node: &Node) -> String {
    let op = node.op.as_str();
    let why = match op {
        "GroupNormalization"
        | "SkipLayerNormalization"
        | "SimplifiedLayerNormalization"
        | "RMSNormalization" => {
            return format!(
                "the CPU provider computes {op} in floats whose order of summation is not known bit for bit; \
                 use BatchNormalization when training, which melts into the operator before it"
            );
        }
        "LogSoftmax" => {
            "the CPU provider computes LogSoftmax in floats, with an exponential and an order of summation \
             that are not known bit for bit; end the model at the scores, whose order is the same"
        }
        "ReduceL1" | "ReduceL2" | "ReduceProd" | "ReduceSumSquare" | "ReduceLogSum"
        | "ReduceLogSumExp" | "CumSum" => {
            return format!(
                "the CPU provider computes {op} in floats, in an order that no command of the device has; a \
                 ReduceMean or ReduceSum is taken"
            );
        }
        "ArgMax" | "ArgMin" | "TopK" | "NonZero" | "NonMaxSuppression" => {
            return format!(
                "{op} gives indices, and the device has commands for 8-bit codes only; end the model before \
                 it and compute it in the application"
            );
        }
        "GatherElements" | "GatherND" | "ScatterElements" | "ScatterND" | "GridSample" => {
            return format!("{op} has indices as data, and no command of the device has");
        }
        "LSTM" | "GRU" | "RNN" => {
            return format!(
                "the CPU provider computes {op} in floats with an order of summation that is not known bit \
                 for bit"
            );
        }
        "If" | "Loop" | "Scan" => {
            return format!(
                "{op} has bodies, and a program of the device has no branches; unroll it"
            );
        }
        "DynamicQuantizeLinear"
        | "MatMulInteger"
        | "ConvInteger"
        | "DynamicQuantizeMatMul"
        | "MatMulIntegerToFloat" => {
            return format!(
                "{op} has scales that are known only when the model runs; quantise statically (QDQ)"
            );
        }
        _ if op.starts_with("QLinear") || op == "QGemm" => {
            return format!("{op} is QOperator form; quantise to QDQ");
        }
        _ => return format!("no exact form of {op} yet"),
    };
    why.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_names_its_operator_or_what_is_missing() {
        for op in ["GroupNormalization", "LogSoftmax", "LSTM", "Foo"] {
            let node = Node {
                name: "n".into(),
                op: op.into(),
                domain: String::new(),
                inputs: Vec::new(),
                outputs: Vec::new(),
                attributes: Default::default(),
            };
            assert!(why(&node).contains(op), "{op}: {}", why(&node));
        }
    }
}

//! The smallest change of a model that would have a refused node taken, as far as it is known.

use crate::graph::Node;
use crate::partition::Verdict;
use crate::refusal::rule;

/// What a reason says behind its last semicolon, which is what would be accepted; for the sentences that
/// have none, what holds for all of their rule. `None` for a node that is taken.
pub(super) fn change(node: &Node, verdict: &Verdict) -> Option<String> {
    if verdict.taken.is_some() {
        return None;
    }
    // What these say behind a semicolon is what becomes of the node, not what would change it.
    let is_told = !matches!(verdict.rule, rule::ISLAND | rule::NO_WORK | rule::MIN_GAIN);
    let advice = verdict.reason.rsplit_once("; ").filter(|_| is_told);
    let advice = advice.map(|(_, advice)| advice.to_owned());
    Some(advice.unwrap_or_else(|| by_rule(node, verdict.rule)))
}

fn by_rule(node: &Node, rule: &str) -> String {
    let op = node.op.as_str();
    match rule {
        rule::OPERATOR => match op {
            "Softmax" | "LogSoftmax" => format!(
                "end the model before `{op}` and compute it in the application, which for the largest \
                 score needs none"
            ),
            "GroupNormalization" | "SkipLayerNormalization" | "RMSNormalization" => format!(
                "use BatchNormalization in place of `{op}` when training: it melts into the operator before it"
            ),
            "DynamicQuantizeLinear" | "MatMulInteger" | "ConvInteger" => {
                "quantise statically (QDQ) in place of dynamically".to_owned()
            }
            "If" | "Loop" | "Scan" => format!("export the model without `{op}`: unroll or trace it"),
            _ if op.starts_with("QLinear") || op == "QGemm" => {
                "quantise to QDQ in place of QOperator form".to_owned()
            }
            _ => format!("express `{op}` by operators of the support table, or leave it to the CPU"),
        },
        rule::ATTRIBUTE => "export with the attribute's default, or fold it into the shapes".to_owned(),
        rule::UNIT => {
            format!("quantise the inputs and the output of `{op}`: DequantizeLinear before, QuantizeLinear behind")
        }
        rule::SCALE => {
            "quantise with constant, finite, positive scales and zero points, one a tensor for activations"
                .to_owned()
        }
        rule::ELEMENT_TYPE => "quantise activations to uint8 and weights to int8".to_owned(),
        rule::S8_ACTIVATIONS => "quantise activations to uint8".to_owned(),
        rule::WEIGHTS => {
            format!("give `{op}` constant int8 weights behind a DequantizeLinear, and a constant bias")
        }
        rule::FLOAT_ORDER => {
            format!("have the CPU run `{op}` in integers: uint8 at its ends, int8 weights, an int32 bias")
        }
        rule::ACCUMULATOR => "quantise the weights to 7 bits (reduce_range)".to_owned(),
        rule::ACTIVATION_RANGE => {
            "calibrate again, so that the range of the QuantizeLinear behind lies within that of the activation"
                .to_owned()
        }
        rule::SHAPE => "fix the shapes, except for the batch, and run ONNX shape inference".to_owned(),
        rule::SIZE => "split the tensor, or run a smaller input".to_owned(),
        rule::FLOAT_NEIGHBOUR => {
            "none of its own: it follows the float operator beside it; quantise that one's output".to_owned()
        }
        rule::NO_WORK | rule::ISLAND => {
            "none of its own: it is taken as soon as an operator beside it is".to_owned()
        }
        rule::MIN_GAIN => "lower `min_gain`, or have the operators around it taken".to_owned(),
        _ => "see the reason".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::NodeId;

    #[test]
    fn every_rule_has_a_change_and_a_reason_with_advice_has_its_own() {
        let node = Node {
            name: "n".into(),
            op: "Softmax".into(),
            domain: String::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            attributes: Default::default(),
        };
        let told = |rule: &'static str, reason: &str| {
            let reason = reason.to_owned();
            change(&node, &Verdict { node: NodeId(0), taken: None, rule, reason, bound_codes: 0 })
                .unwrap()
        };
        for &rule in rule::ALL {
            let found = told(rule, "no advice here");
            assert!(found.len() > 10 && found != "see the reason", "{rule}: {found}");
        }
        assert_eq!(told(rule::SHAPE, "it is open; say how long"), "say how long");
    }
}

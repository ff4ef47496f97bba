//! Files that are models, nearly models, and no models at all.

use super::Fault;
use super::bytes as import;
use super::proto::{self, attribute_type as kind};
use crate::graph::{Attribute, ElementType, Graph, GraphError};
use crate::partition;
use crate::testing::Noise;
use npu_uapi::limits::Limits;
use prost::Message;

const DIGITS: &[u8] = include_bytes!("../../../tests/models/digits.qdq.onnx");

/// What any bytes must come to: a graph with a plan, or an error that says something.
fn check_import(data: Vec<u8>) {
    match import(data) {
        Ok(graph) => {
            let plan = partition::plan(&graph, &Limits::REFERENCE);
            assert_eq!(plan.verdicts.len(), graph.node_count());
        }
        Err(error) => assert!(error.to_string().len() > 20, "{error}"),
    }
}

fn digits() -> proto::Model {
    proto::Model::decode(DIGITS).unwrap()
}

/// The digits model after `change`, imported.
fn changed(change: impl FnOnce(&mut proto::Graph)) -> Result<Graph, Fault> {
    let mut model = digits();
    change(model.graph.as_mut().unwrap());
    import(model.encode_to_vec()).map_err(|error| error.fault)
}

fn message(change: impl FnOnce(&mut proto::Graph)) -> String {
    changed(change).unwrap_err().to_string()
}

fn weight(graph: &mut proto::Graph) -> &mut proto::Tensor {
    graph.initializer.iter_mut().find(|tensor| tensor.dims.len() == 4).unwrap()
}

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> proto::Node {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    proto::Node {
        name: Some(format!("{op} of the test")),
        op_type: Some(op.to_owned()),
        input: names(inputs),
        output: names(outputs),
        ..proto::Node::default()
    }
}

#[test]
fn the_digits_model_is_taken_whole_with_its_batch_open() {
    let graph = import(DIGITS).unwrap();
    let plan = partition::plan(&graph, &Limits::REFERENCE);
    assert_eq!(plan.groups.len(), 1);
    assert_eq!(plan.groups[0].len(), graph.node_count());
    let input = graph.value(graph.inputs()[0]).ty.clone().unwrap();
    assert_eq!(input.element, ElementType::F32);
    assert_eq!(crate::graph::shape_text(&input.shape.unwrap()), "[batch, 1, 28, 28]");
}

#[test]
fn constants_are_views_of_the_file() {
    let file = bytes::Bytes::from_static(DIGITS);
    let inside = file.as_ptr_range();
    let graph = import(file).unwrap();
    let constants = (0..graph.value_count()).filter_map(|id| {
        graph.value(crate::graph::ValueId(u32::try_from(id).unwrap())).constant.as_ref()
    });
    let large: Vec<_> = constants.filter(|constant| constant.bytes.len() > 64).collect();
    assert!(!large.is_empty());
    assert!(large.iter().all(|constant| inside.contains(&constant.bytes.as_ptr())));
}

#[test]
fn flipped_bits_give_a_plan_or_an_error() {
    let mut noise = Noise(41);
    for flips in [1, 1, 1, 3, 20] {
        for _ in 0..300 {
            let mut data = DIGITS.to_vec();
            for _ in 0..flips {
                let at = noise.below(data.len());
                data[at] ^= 1 << noise.below(8);
            }
            check_import(data);
        }
    }
}

#[test]
fn damaged_structure_gives_a_plan_or_an_error() {
    // Names, attributes and lengths are a small part of the file; here they are hit each time.
    let mut noise = Noise(43);
    let numbers = [i64::MIN, -1, 0, 1, 2, 3, 65_536, 1 << 31, i64::MAX];
    for _ in 0..600 {
        let mut model = digits();
        let graph = model.graph.as_mut().unwrap();
        for _ in 0..=noise.below(3) {
            let (nodes, tensors) = (graph.node.len(), graph.initializer.len());
            let node = &mut graph.node[noise.below(nodes)];
            let tensor = &mut graph.initializer[noise.below(tensors)];
            match noise.below(8) {
                0 => node.input.reverse(),
                1 => node.output.clear(),
                2 => node.op_type = Some(noise.pick(&["Identity", "Concat", "", "Loop"]).into()),
                3 => tensor.dims.push(noise.pick(&numbers)),
                4 => tensor.data_type = i32::try_from(noise.below(30)).ok(),
                5 => tensor.raw_data = None,
                6 => {
                    for attribute in &mut node.attribute {
                        attribute.i = Some(noise.pick(&numbers));
                        attribute.ints.fill(noise.pick(&numbers));
                    }
                }
                _ => {
                    let at = noise.below(nodes);
                    graph.node.swap(0, at);
                }
            }
        }
        check_import(model.encode_to_vec());
    }
}

#[test]
fn every_truncation_is_an_error_or_lacks_something() {
    for len in (0..DIGITS.len()).step_by(37) {
        check_import(DIGITS[..len].to_vec());
    }
    assert!(matches!(import(Vec::new()).unwrap_err().fault, Fault::Missing { .. }));
}

#[test]
fn an_initializer_must_fill_its_shape() {
    let short = message(|graph| {
        let tensor = weight(graph);
        let raw = tensor.raw_data.clone().unwrap();
        tensor.raw_data = Some(raw.slice(1..));
    });
    assert!(short.contains("asks for") && short.contains("initializer `"), "{short}");
    let huge = message(|graph| weight(graph).dims = vec![i64::MAX, i64::MAX, 2, 2]);
    assert!(huge.contains("so many elements cannot exist"), "{huge}");
    let negative = message(|graph| weight(graph).dims[0] = -8);
    assert!(negative.contains("dims is [-8"), "{negative}");
    let no_type = message(|graph| weight(graph).data_type = None);
    assert!(no_type.contains("data_type is 0"), "{no_type}");
    let empty = changed(|graph| {
        let tensor = weight(graph);
        tensor.dims[0] = 0;
        tensor.raw_data = Some(bytes::Bytes::new());
    });
    let graph = empty.unwrap();
    let plan = partition::plan(&graph, &Limits::REFERENCE);
    assert!(plan.verdicts.iter().any(|verdict| verdict.reason.contains("0 channels")));
}

#[test]
fn typed_fields_hold_the_same_constants_as_raw_ones() {
    let plain = import(DIGITS).unwrap();
    let typed = changed(|graph| {
        for tensor in &mut graph.initializer {
            let Some(raw) = tensor.raw_data.take() else { continue };
            let words = || raw.as_chunks().0.iter();
            match tensor.data_type() {
                1 => tensor.float_data = words().map(|&word| f32::from_le_bytes(word)).collect(),
                2 => tensor.int32_data = raw.iter().map(|&byte| byte.into()).collect(),
                3 => {
                    let code = |&byte: &u8| i8::from_le_bytes([byte]).into();
                    tensor.int32_data = raw.iter().map(code).collect();
                }
                6 => tensor.int32_data = words().map(|&word| i32::from_le_bytes(word)).collect(),
                other => panic!("the model has no type {other}"),
            }
        }
    });
    let typed = typed.unwrap();
    for id in (0..plain.value_count()).map(|id| crate::graph::ValueId(u32::try_from(id).unwrap())) {
        assert_eq!(plain.value(id).constant, typed.value(id).constant);
    }
}

#[test]
fn a_circle_is_found_and_named() {
    let found = changed(|graph| {
        graph.node.push(node("Relu", &["b"], &["a"]));
        graph.node.push(node("Relu", &["a"], &["b"]));
    });
    let error = found.unwrap_err();
    assert!(matches!(&error, Fault::Cycle { node, .. } if node.contains("Relu of the test")));
}

#[test]
fn names_must_be_written_once_and_before_they_are_read() {
    let read = changed(|graph| graph.node.push(node("Relu", &["nowhere"], &["a"])));
    assert!(matches!(read.unwrap_err(), Fault::Graph(GraphError::ReadBeforeWritten { .. })));
    let written = changed(|graph| graph.node.push(node("Relu", &["input"], &["output"])));
    assert!(matches!(written.unwrap_err(), Fault::Graph(GraphError::WrittenTwice { .. })));
    let output = changed(|graph| graph.output[0].name = Some("nowhere".into()));
    assert!(matches!(output.unwrap_err(), Fault::Graph(GraphError::NoSuchOutput { .. })));
    let twice = message(|graph| graph.input.push(graph.input[0].clone()));
    assert!(twice.contains("graph input `input` is there twice"), "{twice}");
}

#[test]
fn the_order_of_the_file_does_not_matter() {
    let reversed = changed(|graph| graph.node.reverse()).unwrap();
    let plan = partition::plan(&reversed, &Limits::REFERENCE);
    assert_eq!(plan.groups.len(), 1);
    assert_eq!(plan.groups[0].len(), reversed.node_count());
}

#[test]
fn a_long_chain_of_copies_takes_no_time() {
    const LONG: usize = 50_000;
    let graph = changed(|graph| {
        let copy = |at: usize| node("Identity", &[&format!("c{at}")], &[&format!("c{}", at + 1)]);
        graph.node.push(node("Identity", &["input"], &["c0"]));
        graph.node.extend((0..LONG).rev().map(copy));
        let quantize =
            graph.node.iter_mut().find(|node| node.input.first() == Some(&"input".into()));
        quantize.unwrap().input[0] = format!("c{LONG}");
    });
    // The last node to read `input` is the first copy now; all copies are gone.
    assert_eq!(graph.unwrap().node_count(), 26);
}

#[test]
fn what_a_body_reads_of_the_graph_around_it_is_an_input() {
    let graph = changed(|graph| {
        let body = proto::Graph {
            node: vec![node("Add", &["inside", "relu1"], &["sum"])],
            input: vec![proto::ValueInfo { name: Some("inside".into()), ..Default::default() }],
            output: vec![proto::ValueInfo { name: Some("sum".into()), ..Default::default() }],
            ..proto::Graph::default()
        };
        let mut around = node("Loop", &["", ""], &["looped"]);
        around.attribute.push(proto::Attribute {
            name: Some("body".into()),
            r#type: Some(5),
            g: Some(Box::new(body)),
            ..proto::Attribute::default()
        });
        let conv = graph.node.iter_mut().find(|node| node.op_type() == "Conv").unwrap();
        let name = conv.output[0].clone();
        around.attribute[0].g.as_mut().unwrap().node[0].input[1] = name;
        graph.node.push(around);
    });
    let graph = graph.unwrap();
    let (_, around) = graph.nodes().find(|(_, node)| node.op == "Loop").unwrap();
    assert_eq!(around.inputs.iter().flatten().count(), 1);
    assert_eq!(around.attributes["body"], Attribute::Other);
    let plan = partition::plan(&graph, &Limits::REFERENCE);
    let conv = plan.verdicts.iter().find(|verdict| graph.node(verdict.node).op == "Conv").unwrap();
    assert!(conv.taken.is_none(), "its float result is read by the loop");
}

#[test]
fn an_initializer_that_a_caller_may_override_is_no_constant() {
    let overridable = |version| {
        let mut model = digits();
        model.ir_version = Some(version);
        let graph = model.graph.as_mut().unwrap();
        let name = graph.initializer[0].name().to_owned();
        graph.input.push(proto::ValueInfo { name: Some(name), ..Default::default() });
        import(model.encode_to_vec()).unwrap().inputs().len()
    };
    assert_eq!((overridable(3), overridable(7)), (1, 2));
}

#[test]
fn attributes_of_every_kind_are_read() {
    let graph = changed(|graph| {
        let mut odd = node("Odd", &["input"], &["odd"]);
        let attribute = |name: &str, kind| proto::Attribute {
            name: Some(name.into()),
            r#type: Some(kind),
            i: Some(-3),
            f: Some(0.5),
            s: Some(bytes::Bytes::from_static(b"a\xffb")),
            ints: vec![1, -1],
            floats: vec![2.0],
            ..proto::Attribute::default()
        };
        let kinds = [kind::INT, kind::INTS, kind::FLOAT, kind::FLOATS, kind::STRING, kind::TENSOR];
        let named = kinds.iter().zip('a'..).map(|(&kind, name)| attribute(&name.to_string(), kind));
        odd.attribute = named.collect();
        graph.node.push(odd);
    });
    let graph = graph.unwrap();
    let (_, odd) = graph.nodes().find(|(_, node)| node.op == "Odd").unwrap();
    assert_eq!(odd.int("a"), Some(-3));
    assert_eq!(odd.ints("b"), Some(&[1, -1][..]));
    assert_eq!(odd.float("c"), Some(0.5));
    assert_eq!(odd.attributes["d"], Attribute::Floats(vec![2.0]));
    assert_eq!(odd.string("e"), Some("a\u{fffd}b"));
    assert_eq!(odd.attributes["f"], Attribute::Other);
}

#[test]
fn types_that_the_file_lacks_are_inferred_as_it_would_have_them() {
    let whole = import(DIGITS).unwrap();
    let bare = changed(|graph| graph.value_info.clear()).unwrap();
    let mut compared = 0;
    for (_, node) in whole.nodes() {
        for &output in node.outputs.iter().flatten() {
            let declared = &whole.value(output).ty;
            let inferred = &bare.value(output).ty;
            assert!(inferred.is_some(), "{node}");
            assert_eq!(inferred, declared, "{node}");
            compared += 1;
        }
    }
    assert_eq!(compared, 26);
}

//! A roofline: each layer as a dot, what it multiplies a byte against what it reaches, under the limits
//! of the machine. One SVG that is read on light and dark pages alike.

use std::fmt::Write as _;

use super::layers::{Class, Layer, Timed};
use super::limits::{Limits, Reached};

const WIDE: f64 = 860.0;
const HIGH: f64 = 470.0;
/// Around the plot: left, top, right, bottom.
const EDGE: [f64; 4] = [62.0, 52.0, 20.0, 52.0];
/// Multiply-accumulates a byte, and GMAC/s, from one end of each axis to the other.
const ACROSS: (f64, f64) = (0.5, 2048.0);
const UP: (f64, f64) = (2.0, 1024.0);
/// Layers that bear their name.
const NAMED: usize = 5;

const STYLE: &str = "\
svg{font:12px system-ui,sans-serif}text{fill:#1f2933}.quiet{fill:#66727f}.grid{stroke:#66727f;stroke-opacity:.22}\
.roof{fill:none;stroke:#1f2933;stroke-width:1.6}.slope{fill:none;stroke:#66727f;stroke-width:1.2;stroke-dasharray:5 4}\
.dense{fill:#1769aa}.depthwise{fill:#c2571a}.dot{fill-opacity:.62;stroke:#fff;stroke-width:.8}\
@media(prefers-color-scheme:dark){text{fill:#e4e9ee}.quiet{fill:#9aa6b2}.grid{stroke:#9aa6b2}.roof{stroke:#e4e9ee}\
.slope{stroke:#9aa6b2}.dense{fill:#5db2f5}.depthwise{fill:#f2a05c}.dot{stroke:#0d1117}}";

/// The picture of `model` with one thread.
pub(super) fn draw(model: &Timed, limits: &Limits) -> String {
    let layers: Vec<&Layer> =
        model.one.layers.iter().filter(|layer| layer.macs > 0 && layer.bytes > 0).collect();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDE} {HIGH}\" role=\"img\" \
         aria-label=\"roofline of {name}\">\n<style>{STYLE}</style>\n\
         <text x=\"{left}\" y=\"20\" font-size=\"15\" font-weight=\"600\">{name}: what each layer reaches on one thread</text>\n",
        name = escape(&model.name),
        left = EDGE[0],
    );
    out += &legend(&layers);
    out += &axes();
    out += &roofs(&limits.one);
    out += &dots(&layers, limits.one.multiply());
    out + "</svg>\n"
}

fn x(macs_a_byte: f64) -> f64 {
    let share = (macs_a_byte / ACROSS.0).ln() / (ACROSS.1 / ACROSS.0).ln();
    EDGE[0] + share.clamp(0.0, 1.0) * (WIDE - EDGE[0] - EDGE[2])
}

fn y(gmac: f64) -> f64 {
    let share = (gmac / UP.0).ln() / (UP.1 / UP.0).ln();
    HIGH - EDGE[3] - share.clamp(0.0, 1.0) * (HIGH - EDGE[1] - EDGE[3])
}

fn legend(layers: &[&Layer]) -> String {
    let us = |class: Class| -> f64 {
        layers.iter().filter(|layer| layer.class == class).map(|layer| layer.us).sum()
    };
    let mut out = String::new();
    let (mut at, kinds) = (EDGE[0], [("dense", Class::Dense), ("depthwise", Class::Depthwise)]);
    for (name, class) in kinds.into_iter().filter(|&(_, class)| us(class) > 0.0) {
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "<circle class=\"{name}\" cx=\"{:.1}\" cy=\"36\" r=\"5\"/><text x=\"{:.1}\" y=\"40\">{name}, {:.2} ms</text>",
            at + 5.0,
            at + 15.0,
            us(class) / 1e3
        );
        at += 140.0;
    }
    let _ = writeln!(
        out,
        "<text class=\"quiet\" x=\"{at:.1}\" y=\"40\">a dot's area is its share of the time</text>"
    );
    out
}

fn axes() -> String {
    let (left, right) = (x(ACROSS.0), x(ACROSS.1));
    let (bottom, top) = (y(UP.0), y(UP.1));
    let mut out = String::new();
    for power in -1..=11 {
        let (value, at) = (2_f64.powi(power), x(2_f64.powi(power)));
        let _ = writeln!(
            out,
            "<path class=\"grid\" d=\"M{at:.1} {top:.1}V{bottom:.1}\"/>\
             <text class=\"quiet\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>",
            bottom + 17.0
        );
    }
    for power in 1..=10 {
        let (value, at) = (2_f64.powi(power), y(2_f64.powi(power)));
        let _ = writeln!(
            out,
            "<path class=\"grid\" d=\"M{left:.1} {at:.1}H{right:.1}\"/>\
             <text class=\"quiet\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            left - 7.0,
            at + 4.0
        );
    }
    let (middle_x, middle_y) = (f64::midpoint(left, right), f64::midpoint(top, bottom));
    let _ = writeln!(
        out,
        "<text x=\"{middle_x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">multiply-accumulates a byte of input, weights and output</text>\
         <text transform=\"translate(16 {middle_y:.1}) rotate(-90)\" text-anchor=\"middle\">GMAC/s</text>",
        HIGH - 14.0
    );
    out
}

/// The flat roof is the best instruction; the slopes are the copies, of which each byte is read or written once.
fn roofs(limit: &Reached) -> String {
    let (most, mut out) = (limit.multiply(), String::new());
    if most <= 0.0 {
        return out;
    }
    let _ = writeln!(
        out,
        "<path class=\"roof\" d=\"M{:.1} {at:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">bare multiply loop, {most:.0} GMAC/s</text>",
        x((most / limit.l2).max(ACROSS.0)),
        x(ACROSS.1),
        x(ACROSS.1) - 4.0,
        y(most) - 7.0,
        at = y(most),
    );
    for (name, rate) in [("L2", limit.l2), ("memory", limit.memory)] {
        // From where the slope enters the plot to where it meets the roof.
        let (from, to) = ((UP.0 / rate).max(ACROSS.0), most / rate);
        if to <= from {
            continue;
        }
        let _ = writeln!(
            out,
            "<path class=\"slope\" d=\"M{:.1} {:.1}L{:.1} {:.1}\"/><text class=\"quiet\" x=\"{:.1}\" y=\"{:.1}\">{name}, {rate:.0} GB/s</text>",
            x(from),
            y(from * rate),
            x(to),
            y(most),
            x(from) + 8.0,
            y(from * rate) - 6.0
        );
    }
    out
}

/// Dots, and the names of those that lose most time, which are drawn last and not on each other.
fn dots(layers: &[&Layer], most: f64) -> String {
    let all: f64 = layers.iter().map(|layer| layer.us).sum();
    let place = |layer: &Layer| {
        let radius = (60.0 * (layer.us / all).sqrt()).max(2.2);
        (x(layer.count() / bytes(layer)), y(layer.gmac_per_second()), radius)
    };
    let mut sorted = layers.to_vec();
    // Large ones first, so that small ones lie on them.
    sorted.sort_by(|a, b| b.us.total_cmp(&a.us));
    let mut out = String::new();
    for layer in &sorted {
        let (cx, cy, radius) = place(layer);
        let class = if layer.class == Class::Depthwise { "depthwise" } else { "dense" };
        let _ = writeln!(
            out,
            "<circle class=\"dot {class}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"{radius:.1}\"><title>{} {}: {:.1} us, {:.0} GMAC/s</title></circle>",
            escape(&layer.node),
            escape(&layer.what),
            layer.us,
            layer.gmac_per_second()
        );
    }
    let lost = |layer: &Layer| layer.us - layer.count() / most.max(1e-3) / 1e3;
    sorted.sort_by(|a, b| lost(b).total_cmp(&lost(a)));
    sorted.dedup_by(|a, b| a.what == b.what);
    let mut named: Vec<(f64, f64)> = Vec::new();
    for layer in sorted.into_iter().take(NAMED) {
        let (cx, cy, radius) = place(layer);
        let mut at = cy + radius + 12.0;
        while named.iter().any(|&(x, y)| (x - cx).abs() < 190.0 && (y - at).abs() < 14.0) {
            at += 3.0;
        }
        named.push((cx, at));
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{at:.1}\" text-anchor=\"middle\" font-size=\"11\">{}</text>",
            cx.clamp(EDGE[0] + 80.0, WIDE - EDGE[2] - 80.0),
            escape(&layer.what)
        );
    }
    out
}

#[expect(clippy::cast_precision_loss, reason = "a place in a picture")]
fn bytes(layer: &Layer) -> f64 {
    layer.bytes as f64
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::layers::Layers;

    #[test]
    fn the_axes_are_logarithmic_and_hold_what_is_beyond_them() {
        assert!((x(32.0) - f64::midpoint(x(ACROSS.0), x(ACROSS.1))).abs() < 1e-6);
        assert!((y(1e9) - y(UP.1)).abs() < 1e-9 && (x(0.0) - x(ACROSS.0)).abs() < 1e-9);
        assert!(y(100.0) < y(10.0), "more is further up");
    }

    #[test]
    fn each_layer_that_multiplies_is_a_dot_and_names_are_text() {
        let layer = |node: &str, class, macs| Layer {
            node: node.to_owned(),
            what: "conv".to_owned(),
            class,
            macs,
            bytes: 1000,
            us: 10.0,
        };
        let layers = vec![
            layer("a<b", Class::Dense, 9_000),
            layer("c", Class::Depthwise, 9),
            layer("d", Class::Other, 0),
        ];
        let one = Layers { runs: 1, run_us: 20.0, layers };
        let model = Timed { name: "m&m".to_owned(), one, two: None };
        let reached = Reached {
            avx512_vnni: Some(440.0),
            avx_vnni: None,
            avx2: None,
            avx2_exact: None,
            l2: 100.0,
            memory: 20.0,
        };
        let picture = draw(&model, &Limits { one: reached, two: None });
        assert_eq!(picture.matches("class=\"dot ").count(), 2);
        assert!(
            picture.contains("a&lt;b") && picture.contains("m&amp;m") && !picture.contains("a<b")
        );
        assert_eq!(picture.matches("class=\"slope\"").count(), 2);
    }
}

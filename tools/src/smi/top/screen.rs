//! What `top` shows: a title, plots of the device, the clients, the one that is chosen, the keys.
//!
//! What there is no room for goes, in this order: the chosen client, the plots but one, that one, the keys.

use super::history::History;
use crate::smi::figure::{self, bytes, maybe, percent, short};
use crate::smi::list;
use crate::smi::output::Paper;
use crate::smi::reply::Function;
use crate::smi::sample::{Rates, Sample, Use};
use crate::smi::show;
use crate::smi::table::{Column, cut};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, RenderDirection, Sparkline, Widget as _};
use std::time::Duration;

/// Smallest screen that anything is shown on.
const LEAST: (u16, u16) = (20, 4);
/// Columns that a plot should have.
const PLOT_COLUMNS: u16 = 40;
/// A reply that is later than so much after its time is waited for.
const LATE: Duration = Duration::from_millis(1500);

const KEYS: &str = "q quit  h help  s sort  ↑↓ client  +- pace  p pause";
const HELP: &[&str] = &[
    "q, Esc   quit",
    "↑↓, j k  choose a client",
    "s        sort: use, jobs, memory, id",
    "+ -      look more, less often",
    "p        pause",
    "h, ?     this",
];

/// What clients are sorted by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Order {
    Use,
    Jobs,
    Memory,
    Id,
}

impl Order {
    fn name(self) -> &'static str {
        match self {
            Self::Use => "use",
            Self::Jobs => "jobs",
            Self::Memory => "memory",
            Self::Id => "id",
        }
    }
}

/// All that is drawn.
#[derive(Debug)]
pub(super) struct Screen {
    place: String,
    device: Option<String>,
    latest: Sample,
    used: Use,
    history: History,
    every: Duration,
    is_paused: bool,
    is_help: bool,
    /// Whole seconds that the server has been silent for, beyond its time.
    late_s: u64,
    order: Order,
    chosen: Option<u64>,
}

impl Screen {
    /// A screen that has seen `first`.
    pub(super) fn new(
        place: String,
        device: Option<String>,
        first: Sample,
        every: Duration,
    ) -> Self {
        let used = first.since(&first);
        Self {
            place,
            device,
            latest: first,
            used,
            history: History::default(),
            every,
            is_paused: false,
            is_help: false,
            late_s: 0,
            order: Order::Use,
            chosen: None,
        }
    }

    /// Takes a new look in.
    pub(super) fn add(&mut self, sample: Sample) {
        self.used = sample.since(&self.latest);
        self.history.add(&sample, &self.used);
        self.latest = sample;
        self.late_s = 0;
    }

    /// The server has been silent for `silence`; whether the screen is to change.
    pub(super) fn waits(&mut self, silence: Duration) -> bool {
        let late_s = match self.is_paused {
            true => 0,
            false => silence.saturating_sub(self.every + LATE).as_secs(),
        };
        std::mem::replace(&mut self.late_s, late_s) != late_s
    }

    pub(super) fn toggle_help(&mut self) {
        self.is_help = !self.is_help;
    }

    /// Whether there was help to close.
    pub(super) fn close_help(&mut self) -> bool {
        std::mem::take(&mut self.is_help)
    }

    pub(super) fn sort_otherwise(&mut self) {
        self.order = match self.order {
            Order::Use => Order::Jobs,
            Order::Jobs => Order::Memory,
            Order::Memory => Order::Id,
            Order::Id => Order::Use,
        };
    }

    /// Returns how often to look now.
    pub(super) fn toggle_pause(&mut self) -> Option<Duration> {
        self.is_paused = !self.is_paused;
        (!self.is_paused).then_some(self.every)
    }

    /// Returns how often to look now.
    pub(super) fn look_every(
        &mut self,
        change: impl Fn(Duration) -> Duration,
        (least, most): (Duration, Duration),
    ) -> Option<Duration> {
        self.every = change(self.every).clamp(least, most);
        (!self.is_paused).then_some(self.every)
    }

    /// Chooses the client `step` rows below.
    pub(super) fn select(&mut self, step: isize) {
        let ids: Vec<u64> = self.sorted().iter().map(|(function, _)| function.client.id).collect();
        let at = self.chosen.and_then(|id| ids.iter().position(|&other| other == id));
        let last = ids.len().saturating_sub(1);
        let next = at.map_or(0, |at| at.saturating_add_signed(step).min(last));
        self.chosen = ids.get(next).copied();
    }

    /// The clients with their use, in the order that is chosen.
    fn sorted(&self) -> Vec<(&Function, &Rates)> {
        let mut all: Vec<_> = self.latest.stats.functions.iter().zip(&self.used.clients).collect();
        let key = |(function, rates): &(&Function, &Rates)| match self.order {
            Order::Use => rates.busy_percent.unwrap_or(rates.jobs),
            Order::Jobs => rates.jobs,
            Order::Memory => function.mapped_bytes.map_or(0.0, figure::real),
            Order::Id => 0.0,
        };
        // Stable, and they come by id.
        all.sort_by(|one, other| key(other).total_cmp(&key(one)));
        all
    }

    /// Draws all of it.
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        if area.width < LEAST.0 || area.height < LEAST.1 {
            let text = format!(
                "too small: {}x{}, {}x{} at least",
                area.width, area.height, LEAST.0, LEAST.1
            );
            let lines = crate::smi::table::wrapped(&text, usize::from(area.width).max(1));
            return Paragraph::new(Text::from_iter(lines)).render(area, frame.buffer_mut());
        }
        let clients = u16::try_from(self.latest.stats.functions.len()).unwrap_or(u16::MAX);
        let keys = u16::from(area.height >= 8);
        let plot = match area.height {
            0..8 => 0,
            8..16 => 3,
            height => (height / 4).clamp(5, 10),
        };
        let left = area.height - 2 - keys - plot;
        let table = match left {
            0..18 => left,
            _ => (clients + 3).clamp(6, left - 12),
        };
        let rows = [1, plot, 1, table, left - table, keys].map(Constraint::Length);
        let [title, plots, work, table, detail, keys] = Layout::vertical(rows).areas(area);
        self.draw_title(frame, title);
        self.draw_plots(frame, plots);
        self.draw_work(frame, work);
        self.draw_clients(frame, table);
        self.draw_detail(frame, detail);
        let line = cut(KEYS, usize::from(keys.width));
        Paragraph::new(line.dim()).render(keys, frame.buffer_mut());
        if self.is_help {
            draw_help(frame);
        }
    }

    fn draw_title(&self, frame: &mut Frame<'_>, area: Rect) {
        let pace = match (self.is_paused, self.late_s) {
            (true, _) => "paused".to_owned(),
            (false, 0) => format!("{} s", figure::short(self.every.as_secs_f64())),
            (false, late) => format!("no answer for {late} s"),
        };
        let clients = self.latest.stats.server.clients;
        let device = self.device.as_ref().map_or(String::new(), |device| format!("  {device}"));
        let columns = usize::from(area.width);
        let right = match area.width {
            0..60 => format!("{clients} clients  {pace} "),
            _ => format!("{clients} clients by {}  {pace} ", self.order.name()),
        };
        // What is on the right is news; the name of the place is known.
        let left = cut(
            &format!(" npu-smi  {}{device}", self.place),
            columns.saturating_sub(right.chars().count() + 1),
        );
        let gap = columns.saturating_sub(left.chars().count() + right.chars().count());
        let text = cut(&format!("{left}{:gap$}{right}", ""), columns);
        let style = match self.late_s {
            0 => Style::new().add_modifier(Modifier::REVERSED),
            _ => Style::new().fg(Color::Red).add_modifier(Modifier::REVERSED),
        };
        Paragraph::new(Line::styled(text, style)).render(area, frame.buffer_mut());
    }

    fn draw_plots(&self, frame: &mut Frame<'_>, area: Rect) {
        if area.height == 0 {
            return;
        }
        let used = &self.used.device;
        let dram = |rates: &Rates| rates.dram_read_bytes + rates.dram_written_bytes;
        let engines = [used.array_percent, used.vector_percent, used.dma_percent];
        let [array, vector, dma] = engines.map(|value| maybe(value, percent));
        let busy = maybe(used.busy_percent, percent);
        let plots = [
            (
                format!("use {busy} %  array {array}  vector {vector}  DMA {dma}"),
                self.history.device(|rates| rates.busy_percent.unwrap_or(0.0)),
                Some(100.0),
                Color::Green,
            ),
            (format!("DRAM {}/s", bytes(dram(used))), self.history.device(dram), None, Color::Cyan),
            (
                format!("power {} mW (modelled)", maybe(used.power_mw, short)),
                self.history.device(|rates| rates.power_mw.unwrap_or(0.0)),
                None,
                Color::Yellow,
            ),
        ];
        let count = usize::from((area.width / PLOT_COLUMNS).clamp(1, 3));
        let areas = Layout::horizontal(vec![Constraint::Fill(1); count]).spacing(1).split(area);
        for ((title, values, most, color), &area) in plots.into_iter().zip(areas.iter()) {
            draw_plot(frame, area, &title, &values, most, color);
        }
    }

    fn draw_work(&self, frame: &mut Frame<'_>, area: Rect) {
        let used = &self.used.device;
        let faults: u64 = self.latest.stats.functions.iter().map(|f| f.faults).sum();
        let text = format!(
            "{} jobs/s  {} MAC/s  copied {}/s  failed {}/s  faults {faults}",
            short(used.jobs),
            short(used.macs),
            maybe(used.copied_bytes, bytes),
            short(used.failed),
        );
        Paragraph::new(cut(&text, usize::from(area.width))).render(area, frame.buffer_mut());
    }

    fn draw_clients(&self, frame: &mut Frame<'_>, area: Rect) {
        if area.height == 0 {
            return;
        }
        let sorted = self.sorted();
        let columns = usize::from(area.width);
        let lines = self.table(&sorted, columns);
        let (head, rows) = lines.split_first().map_or(("", &[][..]), |(h, r)| (h.as_str(), r));
        let mut shown =
            vec![Line::styled(head.to_owned(), Style::new().add_modifier(Modifier::BOLD))];
        let room = usize::from(area.height) - 1;
        let chosen = sorted.iter().position(|(f, _)| Some(f.client.id) == self.chosen);
        // The chosen one stays in sight.
        let first = chosen.map_or(0, |at| (at + 1).saturating_sub(room.max(1)));
        for (at, row) in rows.iter().enumerate().skip(first).take(room) {
            let style = match chosen == Some(at) {
                true => Style::new().add_modifier(Modifier::REVERSED),
                false => Style::new(),
            };
            shown.push(Line::styled(row.clone(), style));
        }
        if rows.is_empty() && room > 0 {
            shown.push(Line::from(cut("no clients", columns)).dim());
        }
        Paragraph::new(shown).render(area, frame.buffer_mut());
    }

    fn table(&self, sorted: &[(&Function, &Rates)], columns: usize) -> Vec<String> {
        let cells = |cell: &dyn Fn(&Function, &Rates) -> String| {
            sorted.iter().map(|(function, rates)| cell(function, rates)).collect::<Vec<_>>()
        };
        let bars = match columns {
            0..60 => 8,
            60..120 => 16,
            _ => 40,
        };
        let size = |value: Option<u64>| maybe(value.map(figure::real), bytes);
        let text = crate::smi::table::table(
            vec![
                Column::numbers("ID", 0, cells(&|f, _| f.client.id.to_string())),
                Column::numbers("USE%", 0, cells(&|_, rates| maybe(rates.busy_percent, percent))),
                Column::words("HISTORY", 2, cells(&|f, _| self.history.bars(f.client.id, bars))),
                Column::numbers("JOBS/s", 3, cells(&|_, rates| short(rates.jobs))),
                Column::numbers("MAC/s", 7, cells(&|_, rates| short(rates.macs))),
                Column::numbers("MEMORY", 6, cells(&|f, _| size(f.mapped_bytes))),
                Column::numbers("COPIED/s", 8, cells(&|_, r| maybe(r.copied_bytes, bytes))),
                Column::numbers("QUEUED", 4, cells(&|f, _| f.client.in_flight.to_string())),
                Column::numbers("FAULTS", 5, cells(&|f, _| short(figure::real(f.faults)))),
                Column::words("STATE", 9, cells(&|f, _| f.client.state.clone())),
                Column::numbers("PID", 10, cells(&|f, _| list::pid(&f.client))),
                Column::words("PROCESS", 1, cells(&|f, _| f.client.process().to_owned())),
            ],
            Paper::plain(columns),
        );
        text.lines().map(str::to_owned).collect()
    }

    /// The chosen client, or the busiest.
    fn draw_detail(&self, frame: &mut Frame<'_>, area: Rect) {
        let sorted = self.sorted();
        let chosen = sorted.iter().find(|(f, _)| Some(f.client.id) == self.chosen);
        let Some((function, rates)) = chosen.or_else(|| sorted.first()) else { return };
        if area.height < 3 {
            return;
        }
        let paper = Paper::plain(usize::from(area.width));
        let text = show::client_text(function, rates, paper);
        let block =
            Block::new().borders(Borders::TOP).title(format!(" client {} ", function.client.id));
        Paragraph::new(text).block(block).render(area, frame.buffer_mut());
    }
}

/// A plot with its title above, the newest value on the right.
fn draw_plot(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    newest_first: &[f64],
    most: Option<f64>,
    color: Color,
) {
    let columns = usize::from(area.width);
    let seen = &newest_first[..newest_first.len().min(columns)];
    let most = most.unwrap_or_else(|| seen.iter().copied().fold(1.0, f64::max));
    // In thousandths of the highest: bars are whole numbers. What is more than nothing is seen.
    let height = |value: &f64| match value / most * 1000.0 {
        share if share > 0.0 => Some(whole(share).max(u64::from(1000 / (8 * area.height.max(2))))),
        _ => Some(0),
    };
    let bars: Vec<Option<u64>> = seen.iter().map(height).collect();
    let title = cut(title, columns.saturating_sub(3));
    let block = Block::new().borders(Borders::TOP).title(format!(" {title} "));
    Sparkline::default()
        .block(block)
        .data(bars)
        .max(1000)
        .direction(RenderDirection::RightToLeft)
        .absent_value_symbol(" ")
        .style(Style::new().fg(color))
        .render(area, frame.buffer_mut());
}

/// A share in thousandths, within them.
fn whole(share: f64) -> u64 {
    (1..=1000).rev().find(|&step| figure::real(step) <= share).unwrap_or(0)
}

fn draw_help(frame: &mut Frame<'_>) {
    let area = frame.area();
    let columns = HELP.iter().map(|line| line.chars().count()).max().unwrap_or(0) + 2;
    let width = u16::try_from(columns + 2).unwrap_or(u16::MAX).min(area.width);
    let height = u16::try_from(HELP.len() + 2).unwrap_or(u16::MAX).min(area.height);
    let place = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    Clear.render(place, frame.buffer_mut());
    let text = Text::from_iter(HELP.iter().map(|line| format!(" {line}")));
    let block = Block::bordered().title(" keys ");
    Paragraph::new(text).block(block).render(place, frame.buffer_mut());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smi::sample::tests::{function, sample};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn screen(clients: u64) -> Screen {
        let functions = |busy: u64| (1..=clients).map(|id| function(id, busy * id, id)).collect();
        let first = sample(0, functions(0));
        let mut screen = Screen::new("/run/npu.manage".into(), None, first, Duration::from_secs(1));
        screen.add(sample(1_000_000, functions(10_000)));
        screen
    }

    fn drawn(screen: &Screen, columns: u16, rows: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn every_size_is_drawn_without_a_panic() {
        for clients in [0, 1, 40] {
            let mut screen = screen(clients);
            for (columns, rows) in
                (1..200).step_by(7).flat_map(|c| (1..70).step_by(3).map(move |r| (c, r)))
            {
                let text = drawn(&screen, columns, rows);
                if columns >= 20 && rows >= 6 && clients > 0 {
                    assert!(text.contains("USE%"), "{columns}x{rows}: {text}");
                }
            }
            screen.toggle_help();
            assert!(drawn(&screen, 40, 12).contains("this"));
        }
    }

    #[test]
    fn clients_are_sorted_chosen_and_kept_in_sight() {
        let mut screen = screen(40);
        let first = |screen: &Screen| screen.sorted()[0].0.client.id;
        assert_eq!(first(&screen), 40, "by use");
        for _ in 0..3 {
            screen.sort_otherwise();
        }
        assert_eq!(first(&screen), 1, "by id");
        for _ in 0..100 {
            screen.select(1);
        }
        assert_eq!(screen.chosen, Some(40));
        assert!(drawn(&screen, 40, 12).contains("\n\"40"), "{}", drawn(&screen, 40, 12));
        screen.select(-1);
        assert_eq!(screen.chosen, Some(39));
    }

    #[test]
    fn a_server_that_is_late_is_told() {
        let mut screen = screen(1);
        assert!(!screen.waits(Duration::from_secs(1)));
        assert!(screen.waits(Duration::from_secs(5)));
        assert!(drawn(&screen, 80, 24).contains("no answer for 2 s"));
        assert_eq!(screen.toggle_pause(), None);
        assert!(drawn(&screen, 80, 24).contains("paused"));
        assert!(screen.waits(Duration::from_secs(9)), "paused, nothing is late");
    }
}

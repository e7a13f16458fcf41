//! Makes README's tables of the benches and the pictures beside them from the records.
//!
//! `cargo run --release --example bench_report` reads every record in `docs/bench`: what
//! `scripts/bench.sh` wrote on one adapter each. For each it draws a picture with a record's name
//! there, and all tables go to README.md, between two marks.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use plotters::prelude::*;

/// Between these, README.md is written by this program.
const MARKS: [&str; 2] = ["<!-- bench_report: begin -->", "<!-- bench_report: end -->"];

const OPERATIONS: [&str; 3] = ["inference", "forward", "backward"];

/// What is drawn side by side: layout, storage type, and their colour.
const SERIES: [(&str, &str, RGBColor); 4] = [
    ("channels-first", "f32", RGBColor(31, 90, 160)),
    ("channels-first", "f16", RGBColor(120, 170, 220)),
    ("channels-last", "f32", RGBColor(190, 90, 20)),
    ("channels-last", "f16", RGBColor(240, 170, 110)),
];

/// The shapes in README; the records have more.
const SHAPES: [&str; 6] = [
    "32×64×56×56",
    "32×256×14×14",
    "32×2048×7×7",
    "64×64×128×128",
    "2×8×4×4",
    "32×123×7×7",
];

/// A row of a record by the names of its columns.
type Row = BTreeMap<String, String>;

/// What was measured on an adapter.
struct Record {
    path: PathBuf,
    /// The lines before the table: adapter, kind, clock, CPU threads.
    about: BTreeMap<String, String>,
    rows: Vec<Row>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir("docs/bench")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "csv") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut tables = String::new();
    for path in paths {
        let record = Record::read(path)?;
        record.draw()?;
        tables += &record.table();
        println!("{}", record.path.display());
    }
    write_between_marks(Path::new("README.md"), &tables)
}

impl Record {
    fn read(path: PathBuf) -> Result<Self, Box<dyn Error>> {
        let text = fs::read_to_string(&path)?;
        let (about, table): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with('#'));
        let about = about.iter().filter_map(|line| {
            let (name, value) = line.trim_start_matches("# ").split_once(": ")?;
            Some((name.to_owned(), value.to_owned()))
        });
        let mut table = table.into_iter();
        let names: Vec<_> = table
            .next()
            .ok_or("a record has no table")?
            .split(',')
            .collect();
        let row = |line: &str| {
            let values = line.split(',').map(str::to_owned);
            names
                .iter()
                .map(|name| (*name).to_owned())
                .zip(values)
                .collect()
        };
        Ok(Self {
            about: about.collect(),
            rows: table.map(row).collect(),
            path,
        })
    }

    fn about(&self, what: &str) -> &str {
        self.about.get(what).map_or("?", String::as_str)
    }

    /// The adapter, and what it is.
    fn title(&self) -> String {
        let kind = match self.about("kind") {
            "software" => ", a software adapter: a CPU that plays a GPU",
            _ => "",
        };
        format!("{}{kind}", self.about("adapter"))
    }

    /// The shapes, in the order of the record.
    fn shapes(&self) -> Vec<String> {
        let mut shapes: Vec<String> = Vec::new();
        for row in &self.rows {
            let shape = shape(row);
            if !shapes.contains(&shape) {
                shapes.push(shape);
            }
        }
        shapes
    }

    /// An operation's row.
    fn find(
        &self,
        shape_name: &str,
        layout: &str,
        dtype: &str,
        operation: &str,
        fused: &str,
    ) -> Option<&Row> {
        self.rows.iter().find(|row| {
            shape(row) == shape_name
                && row["layout"] == layout
                && row["dtype"] == dtype
                && row["operation"] == operation
                && row["fused"] == fused
        })
    }

    fn table(&self) -> String {
        let name = self.path.file_stem().unwrap_or_default().to_string_lossy();
        let mut text = format!(
            "\n**{}**; {}; CPU path on {} threads.\n\n![Per cent of the copy shader](docs/bench/{name}.svg)\n\n\
             | N×C×H×W | layout | type | inference | forward | backward | fused: inference | forward | backward |\n\
             |---|---|---|---|---|---|---|---|---|\n",
            self.title(),
            self.about("clock"),
            self.about("cpu threads"),
        );
        for shape in SHAPES {
            for (layout, dtype, _) in SERIES {
                let cells = ["none", "relu+residual"].into_iter().flat_map(|fused| {
                    OPERATIONS.map(move |operation| {
                        self.find(shape, layout, dtype, operation, fused).map(cell)
                    })
                });
                let cells: Vec<_> = cells.map(Option::unwrap_or_default).collect();
                if cells.iter().any(|cell| !cell.is_empty()) {
                    let cells = cells.join(" | ");
                    text += &format!("| {shape} | {layout} | {dtype} | {cells} |\n");
                }
            }
        }
        text
    }

    /// Bars of each plain operation, as per cent of the copy shader.
    fn draw(&self) -> Result<(), Box<dyn Error>> {
        let path = self.path.with_extension("svg");
        let root = SVGBackend::new(&path, (1200, 960)).into_drawing_area();
        root.fill(&WHITE)?;
        let root = root.titled(&self.title(), ("sans-serif", 20))?;
        let shapes = self.shapes();
        for (area, operation) in root.split_evenly((3, 1)).iter().zip(OPERATIONS) {
            let percent = |shape: &str, (layout, dtype, _): (&str, &str, RGBColor)| {
                let row = self.find(shape, layout, dtype, operation, "none")?;
                row["percent_of_copy"].parse::<f64>().ok()
            };
            let all = shapes
                .iter()
                .flat_map(|shape| SERIES.map(|series| percent(shape, series)));
            let top = all.flatten().fold(110.0, f64::max) * 1.05;
            let caption =
                format!("{operation}: minimal bytes per second, in per cent of the copy shader");
            let mut chart = ChartBuilder::on(area)
                .caption(caption, ("sans-serif", 16))
                .margin(8)
                .x_label_area_size(30)
                .y_label_area_size(50)
                .build_cartesian_2d(-0.5..shapes.len() as f64 - 0.5, 0.0..top)?;
            chart
                .configure_mesh()
                .disable_x_mesh()
                .x_labels(shapes.len())
                .x_label_formatter(&|x| shapes.get(x.round() as usize).cloned().unwrap_or_default())
                .y_label_formatter(&|y| format!("{y:.0} %"))
                .label_style(("sans-serif", 11))
                .draw()?;
            for (place, series) in SERIES.into_iter().enumerate() {
                let (layout, dtype, colour) = series;
                let bars = shapes.iter().enumerate().filter_map(|(index, shape)| {
                    let left = index as f64 - 0.4 + 0.2 * place as f64;
                    let corners = [(left, 0.0), (left + 0.18, percent(shape, series)?)];
                    Some(Rectangle::new(corners, colour.filled()))
                });
                chart
                    .draw_series(bars)?
                    .label(format!("{layout}, {dtype}"))
                    .legend(move |(x, y)| {
                        Rectangle::new([(x, y - 4), (x + 12, y + 4)], colour.filled())
                    });
            }
            let ends = [(-0.5, 100.0), (shapes.len() as f64 - 0.5, 100.0)];
            chart.draw_series(LineSeries::new(ends, BLACK.stroke_width(1)))?;
            chart
                .configure_series_labels()
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK.mix(0.3))
                .position(SeriesLabelPosition::UpperRight)
                .draw()?;
        }
        root.present()?;
        Ok(())
    }
}

/// `N×C×H×W`.
fn shape(row: &Row) -> String {
    ["n", "c", "h", "w"]
        .map(|name| row[name].as_str())
        .join("×")
}

/// Milliseconds, per cent of the copy shader, and how many times as fast as the CPU path.
fn cell(row: &Row) -> String {
    let number = |name: &str| row[name].parse::<f64>().unwrap_or(f64::NAN);
    format!(
        "{:.3} ms, {:.0} %, ×{:.2}",
        number("gpu_ms"),
        number("percent_of_copy"),
        number("cpu_ms_per_gpu_ms"),
    )
}

fn write_between_marks(path: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    let old = fs::read_to_string(path)?;
    let [begin, end] = MARKS;
    let (before, rest) = old.split_once(begin).ok_or("README has no begin mark")?;
    let (_, after) = rest.split_once(end).ok_or("README has no end mark")?;
    fs::write(path, format!("{before}{begin}\n{text}\n{end}{after}"))?;
    Ok(())
}

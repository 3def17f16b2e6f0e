//! The live view in a terminal.

use std::time::Duration;

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Row, Table};
use tokio::sync::mpsc;

use super::sample::Sample;
use super::view::{NODE_COLUMNS, NodeRow, POOL_COLUMNS, PoolRow, VOLUME_COLUMNS, View, VolumeRow};
use crate::cli::connection::{Channel, CommandError};

/// How long a key is waited for before it is looked whether the view has ended.
const KEY_PATIENCE: Duration = Duration::from_millis(200);

/// Widths of columns: names get what is left.
const WIDTHS: [u16; 10] = [18, 13, 12, 9, 9, 9, 11, 11, 10, 10];

/// What a person wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// To leave.
    Leave,
    /// To see rows further down, or up.
    Scroll(i32),
    /// To see it drawn again, in another size.
    Redraw,
}

/// Draws until somebody presses q.
pub(super) async fn run(channel: &Channel, mut before: Sample, pause: Duration) -> Result<(), CommandError> {
    let mut terminal = ratatui::try_init()?;
    let (sender, mut wishes) = mpsc::channel(16);
    let keys = std::thread::spawn(move || read_keys(&sender));
    let shown = async {
        let mut view = View::new(&before, &before);
        let mut skipped: usize = 0;
        let mut ticks = tokio::time::interval(pause);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            terminal.draw(|frame| draw(frame, &view, skipped))?;
            tokio::select! {
                _ = ticks.tick() => {
                    let now = Sample::take(channel).await?;
                    view = View::new(&before, &now);
                    before = now;
                }
                wish = wishes.recv() => match wish {
                    None | Some(Wish::Leave) => return Ok(()),
                    Some(Wish::Redraw) => {}
                    Some(Wish::Scroll(by)) => {
                        let most = view.volumes.len().saturating_sub(1);
                        skipped = skipped.saturating_add_signed(by as isize).min(most);
                    }
                },
            }
        }
    };
    let shown = shown.await;
    drop(wishes);
    ratatui::try_restore()?;
    // It looks every now and then whether anybody listens.
    drop(keys.join());
    shown
}

/// Tells what keys mean, until nobody wants to know any more.
fn read_keys(wishes: &mpsc::Sender<Wish>) {
    while !wishes.is_closed() {
        let wish = match event::poll(KEY_PATIENCE) {
            Ok(false) => continue,
            Ok(true) => match event::read() {
                Ok(event) => wish(&event),
                Err(_) => Some(Wish::Leave),
            },
            Err(_) => Some(Wish::Leave),
        };
        if let Some(wish) = wish
            && wishes.blocking_send(wish).is_err()
        {
            return;
        }
    }
}

fn wish(event: &Event) -> Option<Wish> {
    let key = match event {
        Event::Resize(..) => return Some(Wish::Redraw),
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        _ => return None,
    };
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Some(Wish::Leave),
        KeyCode::Char('c') if is_control => Some(Wish::Leave),
        KeyCode::Down | KeyCode::Char('j') => Some(Wish::Scroll(1)),
        KeyCode::Up | KeyCode::Char('k') => Some(Wish::Scroll(-1)),
        KeyCode::PageDown => Some(Wish::Scroll(10)),
        KeyCode::PageUp => Some(Wish::Scroll(-10)),
        _ => None,
    }
}

/// Draws it into whatever space there is.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View, skipped: usize) {
    let below = |rows: usize| u16::try_from(rows.min(8)).unwrap_or(8) + 3;
    let [head, volumes, nodes, pools, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(4),
        Constraint::Length(below(view.nodes.len())),
        Constraint::Length(below(view.pools.len())),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Line::raw(view.headline()), head);
    let rows = view.volumes.iter().skip(skipped).map(VolumeRow::cells);
    frame.render_widget(table(" volumes ", &VOLUME_COLUMNS, rows), volumes);
    let rows = view.nodes.iter().map(NodeRow::cells);
    frame.render_widget(table(" nodes ", &NODE_COLUMNS, rows), nodes);
    let rows = view.pools.iter().map(PoolRow::cells);
    frame.render_widget(table(" pools ", &POOL_COLUMNS, rows), pools);
    frame.render_widget(Line::raw("q leaves, up and down scroll the volumes"), foot);
}

fn table<'a>(title: &'a str, columns: &'a [&'a str], rows: impl Iterator<Item = Vec<String>>) -> Table<'a> {
    let widths = columns
        .iter()
        .zip(WIDTHS)
        .enumerate()
        .map(|(index, (_, width))| match index {
            0 => Constraint::Min(width),
            _ => Constraint::Length(width),
        });
    Table::new(rows.map(Row::new), widths)
        .header(Row::new(columns.iter().copied()).style(Style::new().add_modifier(Modifier::BOLD)))
        .block(Block::new().borders(Borders::ALL).title(title))
}

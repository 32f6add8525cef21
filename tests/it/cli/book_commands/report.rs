//! A summary of the statements that were run, and of those that were not, with the reasons.

use super::page::{Done, Note};

/// Number of statements of a page, by treatment.
#[derive(Clone, Copy, Default)]
pub struct Count {
    pub as_it_stands: usize,
    pub small: usize,
    pub absent: usize,
    pub skipped: usize,
}

impl Count {
    pub fn of(done: &Done) -> Self {
        let mut count = Self::default();
        for (number, statement) in done.page.statements.iter().enumerate() {
            let notes: Vec<&Note> = done.notes.iter().filter(|note| note.statement == number).collect();
            *match (&statement.skipped, notes.first()) {
                (Some(_), _) => &mut count.skipped,
                (None, None) => &mut count.as_it_stands,
                (None, Some(_)) if notes.iter().any(|note| note.is_absent) => &mut count.absent,
                (None, Some(_)) => &mut count.small,
            } += 1;
        }
        count
    }

    /// Number of statements that were run.
    pub fn run(&self) -> usize {
        self.as_it_stands + self.small
    }

    fn add(&mut self, other: Self) {
        self.as_it_stands += other.as_it_stands;
        self.small += other.small;
        self.absent += other.absent;
        self.skipped += other.skipped;
    }

    fn row(&self, seconds: f64, name: &str) -> String {
        let Self { as_it_stands, small, absent, skipped } = self;
        format!("{as_it_stands:12} {small:10} {absent:8} {skipped:8} {seconds:8.0}  {name}\n")
    }
}

/// Prints the reasons and the table; returns the sum over all pages.
pub fn print(pages: &[Done]) -> Count {
    for done in pages {
        println!("{}", reasons(done));
    }
    let mut table = String::from("as it stands made small  not run  skipped  seconds  page\n");
    let (mut sum, mut seconds) = (Count::default(), 0.0);
    for done in pages.iter().filter(|done| !done.page.statements.is_empty()) {
        let count = Count::of(done);
        sum.add(count);
        seconds += done.elapsed.as_secs_f64();
        table += &count.row(done.elapsed.as_secs_f64(), &done.page.name);
    }
    println!("{table}{}", sum.row(seconds, "all"));
    sum
}

/// One line for each statement that was not run unchanged.
fn reasons(done: &Done) -> String {
    let mut text = String::new();
    for (number, statement) in done.page.statements.iter().enumerate() {
        let place = format!("{}:{}", done.page.name, statement.line);
        if let Some(reason) = &statement.skipped {
            text += &format!("{place}: skipped: {reason}\n");
        }
        let notes: Vec<&Note> = done.notes.iter().filter(|note| note.statement == number).collect();
        for is_absent in [true, false] {
            let mut texts: Vec<&str> =
                notes.iter().filter(|note| note.is_absent == is_absent).map(|note| note.text.as_str()).collect();
            texts.dedup();
            if !texts.is_empty() {
                let what = if is_absent { "not run" } else { "made small" };
                text += &format!("{place}: {what}: {}\n", texts.join("; "));
            }
        }
    }
    text
}

//! HTML elements that all sections of the page use.

use maud::{Markup, Render, html};

use super::format::score;

/// A Dice with a bar in the background.
pub fn dice_bar(dice: Option<f64>) -> Markup {
    let part = dice.filter(|dice| dice.is_finite()).map_or(0.0, |dice| dice.clamp(0.0, 1.0));
    html! { span.bar style=(format!("--part:{:.1}%", 100.0 * part)) { (score(dice)) } }
}

/// A definition list.
pub fn definitions<'a>(class: &str, pairs: impl IntoIterator<Item = (&'a str, Markup)>) -> Markup {
    html! {
        dl class=(class) {
            @for (name, value) in pairs { div { dt { (name) } dd { (value) } } }
        }
    }
}

/// A table with column headings; the first column has the row headings.
pub fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<Markup>>) -> Markup {
    html! {
        table {
            thead { tr { @for heading in headings { th scope="col" { (heading) } } } }
            tbody {
                @for row in rows {
                    tr {
                        @for (column, cell) in row.into_iter().enumerate() {
                            @if column == 0 { th scope="row" { (cell) } } @else { td { (cell) } }
                        }
                    }
                }
            }
        }
    }
}

/// A table cell with text.
pub fn cell(text: impl Render) -> Markup {
    html! { (text) }
}

/// A scrollable container for contents that may exceed the page.
pub fn scrolling(name: &str, contents: Markup) -> Markup {
    html! { div.scroll role="region" aria-label=(name) tabindex="0" { (contents) } }
}

/// A collapsible section.
pub fn folded(heading: &str, contents: Markup) -> Markup {
    html! { details { summary { (heading) } (contents) } }
}

/// A remark.
pub fn note(text: &str) -> Markup {
    html! { p.note { (text) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attributes_are_escaped() {
        let name = "<b> & \"c\"";
        let html =
            definitions("x", [(name, dice_bar(None))]).into_string() + &scrolling(name, cell(name)).into_string();
        assert_eq!(html.matches("&lt;b&gt; &amp; &quot;c&quot;").count(), 3, "{html}");
        assert!(!html.contains("<b>"));
    }
}

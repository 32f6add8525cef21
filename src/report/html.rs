//! HTML that is well formed by the way it is made: text is escaped where it comes in, and every element is closed.

use std::fmt::Display;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A piece of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Html(String);

/// Names and values of attributes; values are escaped.
pub type Attributes<'a> = &'a [(&'static str, &'a str)];

/// Text, escaped.
pub fn text(text: impl Display) -> Html {
    Html(escape(&text.to_string()))
}

/// An element with what is inside of it.
pub fn tag(name: &'static str, attributes: Attributes, inside: impl IntoIterator<Item = Html>) -> Html {
    let Html(inside) = join(inside);
    Html(format!("{}{inside}</{name}>", opening(name, attributes)))
}

/// An element that has nothing inside and is not closed, such as `meta`.
pub fn void(name: &'static str, attributes: Attributes) -> Html {
    Html(opening(name, attributes))
}

/// A PNG file as a picture within the page.
pub fn picture(png: &[u8], description: &str) -> Html {
    let data = format!("data:image/png;base64,{}", STANDARD.encode(png));
    void("img", &[("src", &data), ("alt", description)])
}

/// One after the other.
pub fn join(parts: impl IntoIterator<Item = Html>) -> Html {
    Html(parts.into_iter().map(|Html(part)| part).collect())
}

/// A table with a heading for each column; its first column names the rows.
pub fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<Html>>) -> Html {
    let head = headings.iter().map(|heading| tag("th", &[("scope", "col")], [text(heading)]));
    let row = |cells: Vec<Html>| {
        let cells = cells.into_iter().enumerate().map(|(column, cell)| match column {
            0 => tag("th", &[("scope", "row")], [cell]),
            _ => tag("td", &[], [cell]),
        });
        tag("tr", &[], cells)
    };
    let body = tag("tbody", &[], rows.into_iter().map(row));
    tag("table", &[], [tag("thead", &[], [tag("tr", &[], head)]), body])
}

/// What may be wider or longer than the page, and then scrolls.
pub fn scrolling(name: &str, inside: Html) -> Html {
    tag("div", &[("class", "scroll"), ("role", "region"), ("aria-label", name), ("tabindex", "0")], [inside])
}

/// Names with what they stand for.
pub fn definitions(class: &str, pairs: impl IntoIterator<Item = (String, Html)>) -> Html {
    let pair = |(name, value)| tag("div", &[], [tag("dt", &[], [text(name)]), tag("dd", &[], [value])]);
    tag("dl", &[("class", class)], pairs.into_iter().map(pair))
}

/// What opens on a click.
pub fn folded(heading: &str, inside: Html) -> Html {
    tag("details", &[], [tag("summary", &[], [text(heading)]), inside])
}

/// A whole page, with a style sheet of ours. It may fetch nothing.
pub fn document(title: &str, style: &'static str, body: impl IntoIterator<Item = Html>) -> String {
    let policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'";
    let head = [
        void("meta", &[("charset", "utf-8")]),
        void("meta", &[("name", "viewport"), ("content", "width=device-width, initial-scale=1")]),
        void("meta", &[("name", "color-scheme"), ("content", "light dark")]),
        void("meta", &[("http-equiv", "Content-Security-Policy"), ("content", policy)]),
        tag("title", &[], [text(title)]),
        tag("style", &[], [Html(style.to_owned())]),
    ];
    let Html(page) = tag("html", &[("lang", "en")], [tag("head", &[], head), tag("body", &[], body)]);
    format!("<!DOCTYPE html>\n{page}\n")
}

fn opening(name: &str, attributes: Attributes) -> String {
    let attributes = attributes.iter().map(|(name, value)| format!(" {name}=\"{}\"", escape(value)));
    format!("<{name}{}>", attributes.collect::<String>())
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            // Control characters have no place in HTML.
            letter if letter.is_control() && !letter.is_whitespace() => escaped.push('\u{fffd}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attributes_stay_what_they_are() {
        let Html(html) = tag("p", &[("title", "a\" onclick=\"b")], [text("<b> & 'c'\0"), void("br", &[])]);
        assert_eq!(html, "<p title=\"a&quot; onclick=&quot;b\">&lt;b&gt; &amp; &#39;c&#39;\u{fffd}<br></p>");
    }

    #[test]
    fn a_picture_is_in_the_page() {
        let Html(html) = picture(b"png", "a case");
        assert_eq!(html, "<img src=\"data:image/png;base64,cG5n\" alt=\"a case\">");
    }
}

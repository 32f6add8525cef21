//! HTML builder: text is escaped and every element is closed, so that pages are well-formed.

use std::fmt::Display;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// An HTML fragment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Html(String);

/// Attribute names and values; values are escaped.
pub type Attributes<'a> = &'a [(&'static str, &'a str)];

/// Escaped text.
pub fn text(text: impl Display) -> Html {
    Html(escape(&text.to_string()))
}

/// An element with its contents.
pub fn tag(name: &'static str, attributes: Attributes, inside: impl IntoIterator<Item = Html>) -> Html {
    let Html(inside) = join(inside);
    Html(format!("{}{inside}</{name}>", opening(name, attributes)))
}

/// An element without contents or closing tag, such as `meta`.
pub fn void(name: &'static str, attributes: Attributes) -> Html {
    Html(opening(name, attributes))
}

/// A PNG file, embedded in the page.
pub fn picture(png: &[u8], description: &str) -> Html {
    let data = format!("data:image/png;base64,{}", STANDARD.encode(png));
    void("img", &[("src", &data), ("alt", description)])
}

/// Concatenates fragments.
pub fn join(parts: impl IntoIterator<Item = Html>) -> Html {
    Html(parts.into_iter().map(|Html(part)| part).collect())
}

/// A table with column headings; the first column has the row headings.
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

/// Scrollable container for contents that may exceed the page.
pub fn scrolling(name: &str, inside: Html) -> Html {
    tag("div", &[("class", "scroll"), ("role", "region"), ("aria-label", name), ("tabindex", "0")], [inside])
}

/// Definition list.
pub fn definitions(class: &str, pairs: impl IntoIterator<Item = (String, Html)>) -> Html {
    let pair = |(name, value)| tag("div", &[], [tag("dt", &[], [text(name)]), tag("dd", &[], [value])]);
    tag("dl", &[("class", class)], pairs.into_iter().map(pair))
}

/// Collapsible section.
pub fn folded(heading: &str, inside: Html) -> Html {
    tag("details", &[], [tag("summary", &[], [text(heading)]), inside])
}

/// A complete page with a style sheet. Its policy forbids loading external resources.
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
            // Control characters are not allowed in HTML.
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

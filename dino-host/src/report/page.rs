//! The page around the evidence: HTML and its style. Nothing is fetched: pictures are data, the script is a few lines, and the page works
//! without it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Text as HTML, in or between quotes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Control characters have no place in a document.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    out
}

/// A PNG as an image that is part of the page.
pub fn picture(png: &[u8], alt: &str) -> String {
    format!("<img alt=\"{}\" src=\"data:image/png;base64,{}\">", escape(alt), STANDARD.encode(png))
}

/// A table of names and values.
pub fn table(rows: &[(String, String)]) -> String {
    let rows: String = rows
        .iter()
        .map(|(name, value)| format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape(name), escape(value)))
        .collect();
    format!("<div class=\"wide\"><table>{rows}</table></div>")
}

/// A section with a heading; nothing where it is empty.
pub fn section(title: &str, body: &str) -> String {
    match body.is_empty() {
        true => String::new(),
        false => format!("<section><h2>{}</h2>\n{body}</section>\n", escape(title)),
    }
}

/// The whole document.
pub fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        escape(title)
    )
}

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_stay_text() {
        let hostile = "</table><script>alert('\"&\u{1b}')</script>";
        let escaped = "&lt;/table&gt;&lt;script&gt;alert(&#39;&quot;&amp;\u{FFFD}&#39;)&lt;/script&gt;";
        assert_eq!(escape(hostile), escaped);
        assert!(table(&[(hostile.into(), hostile.into())]).matches(escaped).count() == 2);
        assert!(document(hostile, "").contains(&format!("<title>{escaped}</title>")));
        assert!(!document("", "").contains("http"), "nothing is fetched");
    }
}

//! Just enough of Rust's lexical rules to tell code from comments and literals, and tests from the rest.

/// `text` with the inside of comments, strings and character literals turned into blanks. Line breaks and columns stay.
pub fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out: Vec<char> = chars.iter().map(|c| if *c == '\n' { '\n' } else { ' ' }).collect();
    let mut i = 0;
    while i < chars.len() {
        let end = comment(&chars, i).or_else(|| literal(&chars, i));
        match end {
            Some(end) => i = end,
            None => {
                out[i] = chars[i];
                i += 1;
            }
        }
    }
    out.into_iter().collect()
}

fn at(chars: &[char], i: usize) -> char {
    chars.get(i).copied().unwrap_or('\0')
}

/// Where the comment that begins at `i` ends.
fn comment(chars: &[char], start: usize) -> Option<usize> {
    if at(chars, start) != '/' {
        return None;
    }
    match at(chars, start + 1) {
        '/' => Some((start..chars.len()).find(|i| chars[*i] == '\n').unwrap_or(chars.len())),
        '*' => {
            let (mut depth, mut i) = (1, start + 2);
            while depth > 0 && i < chars.len() {
                match (chars[i], at(chars, i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
            }
            Some(i)
        }
        _ => None,
    }
}

/// Where the string or character literal that begins at `i` (its prefix included) ends. A lifetime is none.
fn literal(chars: &[char], start: usize) -> Option<usize> {
    if start > 0 && is_word(chars[start - 1]) {
        return None;
    }
    let mut i = start;
    let mut raw = false;
    while matches!(at(chars, i), 'b' | 'c' | 'r') && i < start + 2 {
        raw |= chars[i] == 'r';
        i += 1;
    }
    let hashes = chars[i.min(chars.len())..].iter().take_while(|c| raw && **c == '#').count();
    match at(chars, i + hashes) {
        '"' if raw => {
            let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            let body = i + hashes + 1;
            let found = (body..chars.len()).find(|at| chars[*at..].starts_with(&close));
            Some(found.map_or(chars.len(), |at| at + close.len()))
        }
        quote @ ('"' | '\'') if hashes == 0 => {
            // 'a is a lifetime, 'a' a character; '\n' is always a character.
            if quote == '\'' && at(chars, i + 1) != '\\' && at(chars, i + 2) != '\'' {
                return None;
            }
            let mut end = i + 1;
            while end < chars.len() && chars[end] != quote {
                end += if chars[end] == '\\' { 2 } else { 1 };
            }
            Some((end + 1).min(chars.len()))
        }
        _ => None,
    }
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// A word or one other sign of the code, with its line (from 0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

/// The code as words and signs (`::` is one sign).
pub fn tokens(code: &str) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut joined = false;
    for (line, text) in code.lines().enumerate() {
        for c in text.chars() {
            match tokens.last_mut() {
                Some(last) if joined && is_word(c) && last.text.chars().all(is_word) => last.text.push(c),
                Some(last) if joined && c == ':' && last.text == ":" => last.text.push(c),
                _ if c.is_whitespace() => {}
                _ => tokens.push(Token { text: c.to_string(), line }),
            }
            joined = !c.is_whitespace();
        }
        joined = false;
    }
    tokens
}

/// The token after the item that begins at `from`: its `;`, or the end of its braces.
pub fn item_end(tokens: &[Token], from: usize) -> usize {
    let mut depth = 0i32;
    for (i, token) in tokens.iter().enumerate().skip(from) {
        match token.text.as_str() {
            "{" | "(" | "[" => depth += 1,
            ")" | "]" => depth -= 1,
            "}" => {
                depth -= 1;
                if depth <= 0 {
                    return i + 1;
                }
            }
            ";" if depth == 0 => return i + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// Which lines belong to items under `#[cfg(test)]`.
pub fn test_lines(tokens: &[Token], lines: usize) -> Vec<bool> {
    let mut test = vec![false; lines];
    let mark = ["#", "[", "cfg", "(", "test", ")", "]"];
    for i in 0..tokens.len() {
        if tokens[i..].iter().take(mark.len()).map(|t| t.text.as_str()).eq(mark) {
            let end = item_end(tokens, after_attributes(tokens, i));
            let last = tokens.get(end - 1).map_or(lines - 1, |t| t.line);
            test[tokens[i].line..=last].fill(true);
        }
    }
    test
}

/// Skips `#[…]` groups, so that their brackets are not taken for the item.
fn after_attributes(tokens: &[Token], mut i: usize) -> usize {
    while tokens.get(i).is_some_and(|t| t.text == "#") {
        let mut depth = 0;
        i += 1;
        while let Some(token) = tokens.get(i) {
            depth += (token.text == "[") as i32 - (token.text == "]") as i32;
            i += 1;
            if depth == 0 {
                break;
            }
        }
    }
    i
}

#[test]
fn literals_and_comments_are_not_code() {
    let text = "let a = \"x // y\"; // std::fs\nlet b = r#\"\"quoted\"\"#; /* a /* b */ c */ let c = '\"'; fn f<'a>(x: &'a str) {}";
    let code = code_only(text);
    assert_eq!(code.chars().count(), text.chars().count());
    let words: Vec<String> = tokens(&code).into_iter().map(|t| t.text).collect();
    assert_eq!(words.join(" "), "let a = ; let b = ; let c = ; fn f < ' a > ( x : & ' a str ) { }");
}

#[test]
fn byte_strings_and_escapes_are_literals() {
    let code = code_only("f(b\"a\\\"b\", b'\\'', c\"x\", br\"\\\", '\\u{1F}', number, rb)");
    let words: Vec<String> = tokens(&code).into_iter().map(|t| t.text).collect();
    assert_eq!(words.join(" "), "f ( , , , , , number , rb )");
}

#[test]
fn test_items_are_told_from_the_rest() {
    let text =
        "fn a() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nuse x;\nfn d() {}";
    let found = test_lines(&tokens(text), text.lines().count());
    assert_eq!(found, [false, true, true, true, true, true, false, true, true, false]);
}

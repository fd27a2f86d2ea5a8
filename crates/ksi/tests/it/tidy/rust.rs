//! A Rust file as the checks see it: which lines are code, and what a normal build leaves out.

use std::collections::BTreeSet;

use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Meta, Token as Punctuation};

/// A word, a literal, a sign or a bracket, with the lines it covers; never a comment.
pub(super) struct Token {
    pub(super) text: String,
    pub(super) first: usize,
    pub(super) last: usize,
}

/// `mod name;`, with the inline modules around it.
pub(super) struct Declaration {
    pub(super) path: Vec<String>,
    pub(super) line: usize,
}

pub(super) struct RustFile {
    text: String,
    pub(super) tokens: Vec<Token>,
    syntax: syn::File,
}

impl RustFile {
    pub(super) fn parse(text: &str) -> Result<Self, syn::Error> {
        let stream: TokenStream = text.parse()?;
        let mut tokens = Vec::new();
        flatten(stream, &text.lines().collect::<Vec<_>>(), &mut tokens);
        Ok(Self { text: text.to_owned(), tokens, syntax: syn::parse_file(text)? })
    }

    /// The numbers of the lines that hold code, tests included.
    pub(super) fn code_lines(&self) -> BTreeSet<usize> {
        let texts: Vec<_> = self.text.lines().collect();
        let covered = self.tokens.iter().flat_map(|token| token.first..=token.last);
        covered.filter(|line| !texts[line - 1].trim().is_empty()).collect()
    }

    /// The numbers of the lines that are compiled only when `test`, or a feature, is among
    /// `switches` and on.
    pub(super) fn lines_behind(&self, switches: &[&str]) -> BTreeSet<usize> {
        let mut finder = Behind { switches, around: vec![self.whole()], lines: BTreeSet::new() };
        finder.visit_file(&self.syntax);
        finder.lines
    }

    /// The modules that lie in files of their own.
    pub(super) fn declarations(&self) -> Vec<Declaration> {
        let mut finder = Declarations { around: Vec::new(), found: Vec::new() };
        finder.visit_file(&self.syntax);
        finder.found
    }

    /// The names of the modules at the top of this file, with or without a body.
    pub(super) fn modules(&self) -> Vec<String> {
        let names = self.syntax.items.iter().filter_map(|item| match item {
            syn::Item::Mod(module) => Some(module.ident.to_string()),
            _ => None,
        });
        names.collect()
    }

    fn whole(&self) -> (usize, usize) {
        (1, self.text.lines().count())
    }
}

/// Takes the brackets apart, and leaves out documentation, which the lexer hands over as
/// attributes that span the comment.
fn flatten(stream: TokenStream, texts: &[&str], tokens: &mut Vec<Token>) {
    for tree in stream {
        if starts_a_comment(tree.span(), texts) {
            continue;
        }
        let TokenTree::Group(group) = tree else {
            tokens.push(token(tree.to_string(), tree.span()));
            continue;
        };
        let (open, close) = brackets(group.delimiter());
        tokens.push(token(open.to_owned(), group.span_open()));
        flatten(group.stream(), texts, tokens);
        tokens.push(token(close.to_owned(), group.span_close()));
    }
}

fn starts_a_comment(span: Span, texts: &[&str]) -> bool {
    let start = span.start();
    let mut letters = texts[start.line - 1].chars().skip(start.column);
    letters.next() == Some('/') && matches!(letters.next(), Some('/' | '*'))
}

fn token(text: String, span: Span) -> Token {
    let (first, last) = lines(span);
    Token { text, first, last }
}

fn lines(span: Span) -> (usize, usize) {
    (span.start().line, span.end().line)
}

fn brackets(delimiter: Delimiter) -> (&'static str, &'static str) {
    match delimiter {
        Delimiter::Parenthesis => ("(", ")"),
        Delimiter::Brace => ("{", "}"),
        Delimiter::Bracket => ("[", "]"),
        Delimiter::None => ("", ""),
    }
}

/// Finds what stands behind a `cfg` that needs one of the switches.
struct Behind<'a> {
    switches: &'a [&'a str],
    /// What may bear an attribute, from the file inwards.
    around: Vec<(usize, usize)>,
    lines: BTreeSet<usize>,
}

impl Behind<'_> {
    fn inside(&mut self, span: Span, visit: impl FnOnce(&mut Self)) {
        self.around.push(lines(span));
        visit(self);
        self.around.pop();
    }
}

/// Attributes belong to the innermost of these, so each kind of node that may bear one is named.
macro_rules! bearers {
    ($($method:ident: $node:ident),* $(,)?) => {$(
        fn $method(&mut self, node: &'ast syn::$node) {
            self.inside(node.span(), |finder| visit::$method(finder, node));
        }
    )*};
}

impl<'ast> Visit<'ast> for Behind<'_> {
    bearers! {
        visit_item: Item,
        visit_impl_item: ImplItem,
        visit_trait_item: TraitItem,
        visit_foreign_item: ForeignItem,
        visit_stmt: Stmt,
        visit_expr: Expr,
        visit_arm: Arm,
        visit_field: Field,
        visit_field_pat: FieldPat,
        visit_field_value: FieldValue,
        visit_variant: Variant,
        visit_fn_arg: FnArg,
        visit_generic_param: GenericParam,
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if !attribute.path().is_ident("cfg") || holds_without(&attribute.meta, self.switches) {
            return;
        }
        let (first, last) = self.around.last().copied().unwrap_or_default();
        self.lines.extend(first..=last);
    }
}

/// Whether a condition can hold while all the switches are off. What is unknown may hold, so that
/// nothing escapes the count by an unusual condition.
fn holds_without(condition: &Meta, switches: &[&str]) -> bool {
    match condition {
        Meta::Path(path) => !switches.iter().any(|switch| path.is_ident(switch)),
        Meta::NameValue(pair) => !names_a_switch(pair, switches),
        Meta::List(list) => {
            let inner = Punctuated::<Meta, Punctuation![,]>::parse_terminated;
            let Ok(inner) = list.parse_args_with(inner) else { return true };
            let mut inner = inner.iter().map(|condition| holds_without(condition, switches));
            if list.path.is_ident("any") {
                return inner.any(|holds| holds);
            }
            list.path.is_ident("not") || inner.all(|holds| holds)
        }
    }
}

fn names_a_switch(pair: &syn::MetaNameValue, switches: &[&str]) -> bool {
    let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(name), .. }) = &pair.value else {
        return false;
    };
    pair.path.is_ident("feature") && switches.contains(&name.value().as_str())
}

struct Declarations {
    around: Vec<String>,
    found: Vec<Declaration>,
}

impl<'ast> Visit<'ast> for Declarations {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        self.around.push(module.ident.to_string());
        if module.content.is_none() {
            let line = module.ident.span().start().line;
            self.found.push(Declaration { path: self.around.clone(), line });
        }
        visit::visit_item_mod(self, module);
        self.around.pop();
    }
}

//! Page sizes.

use std::fmt;

/// The pages an arena is mapped on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PageKind {
    /// The base pages of the machine; transparent huge pages where the kernel finds them.
    Ordinary,
    /// Huge pages of 2 MiB.
    Size2MiB,
    /// Huge pages of 1 GiB.
    Size1GiB,
}

impl PageKind {
    /// The size of a page in bytes.
    #[must_use]
    pub fn size_bytes(self) -> usize {
        match self {
            PageKind::Ordinary => ordinary_page_bytes(),
            PageKind::Size2MiB => 2 << 20,
            PageKind::Size1GiB => 1 << 30,
        }
    }

    /// Whether these are huge pages set aside by the kernel.
    #[must_use]
    pub fn is_huge(self) -> bool {
        self != PageKind::Ordinary
    }
}

impl fmt::Display for PageKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PageKind::Ordinary => write!(formatter, "{} KiB", self.size_bytes() >> 10),
            PageKind::Size2MiB => formatter.write_str("2 MiB"),
            PageKind::Size1GiB => formatter.write_str("1 GiB"),
        }
    }
}

#[cfg(not(miri))]
fn ordinary_page_bytes() -> usize {
    rustix::param::page_size()
}

#[cfg(miri)]
fn ordinary_page_bytes() -> usize {
    4096
}

/// The pages an arena would like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PagePreference {
    /// 1 GiB pages when the arena is a multiple of that and they are free, else 2 MiB pages, else ordinary
    /// ones. An arena smaller than 2 MiB gets ordinary pages.
    #[default]
    Auto,
    /// 2 MiB pages.
    Size2MiB,
    /// 1 GiB pages.
    Size1GiB,
    /// Ordinary pages, and no warning about it.
    Ordinary,
}

impl PagePreference {
    /// The huge pages to try, in order, for an arena of `bytes`.
    pub(crate) fn candidates(self, bytes: usize) -> &'static [PageKind] {
        match self {
            PagePreference::Size2MiB => &[PageKind::Size2MiB],
            PagePreference::Size1GiB => &[PageKind::Size1GiB],
            PagePreference::Ordinary => &[],
            PagePreference::Auto if bytes < PageKind::Size2MiB.size_bytes() => &[],
            PagePreference::Auto if bytes.is_multiple_of(PageKind::Size1GiB.size_bytes()) => {
                &[PageKind::Size1GiB, PageKind::Size2MiB]
            }
            PagePreference::Auto => &[PageKind::Size2MiB],
        }
    }
}

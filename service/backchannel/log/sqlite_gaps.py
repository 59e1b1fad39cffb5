"""Cleans the gaps of a database file: the room in a page that no row takes.

SQLite overwrites what is deleted. But when it moves rows from one page to another, to make room or
to fill it, the rows' old bytes stay behind in the gap between the page's list of rows and the rows
themselves. Nothing reads them, and nothing removes them when the rows are deleted at last: they are
found by who reads the file.

What a gap is and that its bytes mean nothing is the file format's word,
https://www.sqlite.org/fileformat2.html#b_tree_pages. A page's first byte tells a page of rows from
others: those begin with a page number, whose high byte is less than 2 in any file that is cleaned.
"""

from __future__ import annotations

import os
from struct import Struct
from typing import Final

# The length of what is before the list of rows, by the page's type: inner pages, leaves.
_HEADER_BYTES: Final = {2: 12, 5: 12, 10: 8, 13: 8}
_HEADER: Final = Struct(">BHHH")
# What SQLite's own header takes of the first page.
_FILE_HEADER_BYTES: Final = 100
_MAX_PAGES: Final = 2 << 24


def clean(descriptor: int, first_page: int, pages: int, page_bytes: int) -> int:
    """Zero the gaps of some pages.

    To be called while all is in the file, nothing in the write-ahead log and no page in memory.

    Args:
        descriptor: The file. SQLite's locks on a file end when the process closes any descriptor
            of it, so this one must stay open as long as the database.
        first_page: Where to begin, from 0.
        pages: How many.
        page_bytes: A page's size.

    Returns:
        Where to go on; 0 at the end.

    Raises:
        OSError: The disk refuses.
    """
    data = os.pread(descriptor, pages * page_bytes, first_page * page_bytes)
    for start in range(0, len(data) - page_bytes + 1, page_bytes):
        page = first_page + start // page_bytes
        header = start + (0 if page else _FILE_HEADER_BYTES)
        kind, _, rows, content = _HEADER.unpack_from(data, header)
        size = _HEADER_BYTES.get(kind)
        if size is None or page >= _MAX_PAGES:
            continue
        begin = header + size + 2 * rows
        end = start + (content or 65536)
        # Not so in a damaged page, which is left as it is.
        if begin < end <= start + page_bytes and data.count(0, begin, end) != end - begin:
            os.pwrite(descriptor, bytes(end - begin), first_page * page_bytes + begin)
    whole = len(data) == pages * page_bytes
    return first_page + pages if whole else 0

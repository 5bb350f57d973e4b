"""Reading a configuration's YAML: sections of keys, whose values are texts.

What a text means, the key that it is for decides (`realspike.config.run_config`): ``010`` is ten
where a number is wanted and a name where a name is. So neither the numbers, dates and booleans of
YAML 1.1 nor its tags and aliases are ever interpreted.
"""

from collections.abc import Iterator
from pathlib import Path

from realspike.names import shown
from realspike.optional import require

LARGEST = 2**16  # bytes; the whole configuration has some 40 short lines
_NULLS = ("", "~", "null", "Null", "NULL")


def read(path: Path) -> "dict[str, dict[str, str | None]]":
    """Return the values of a file by section and key; None for null.

    Raises:
        OSError: if it cannot be read.
        ValueError: for what is not UTF-8, no YAML, too large, given twice, nested any deeper, or a
            tag, an anchor or an alias; the message says which, and on what line.
    """
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 ({error})") from error
    yaml = require("yaml")
    try:
        return _document(yaml, yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML: {' '.join(str(error).split())}") from error


def _document(yaml, events: Iterator) -> dict:
    """Build the sections of a stream of events, which is as long as the text: no alias unfolds."""

    def text_of(event) -> "str | None":
        plain_null = event.style is None and event.value in _NULLS
        return None if plain_null else event.value

    def mapping(name: str, depth: int) -> dict:
        values: dict = {}
        while not isinstance(key := following(), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent):
                raise _error(key, f"a key of {name} must be a text")
            if key.value in values:
                raise _error(key, f"{name} has {shown(key.value)} twice")
            value = following()
            inner = f"{name}.{key.value}" if depth else key.value
            if isinstance(value, yaml.ScalarEvent):
                values[key.value] = text_of(value)
            elif depth == 0 and isinstance(value, yaml.MappingStartEvent):
                values[key.value] = mapping(inner, 1)
            else:
                wanted = "one value" if depth else "a section of keys"
                raise _error(value, f"{inner:.80} must be {wanted}")
        return values

    def following():
        event = next(events)
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise _error(
                event, "tags (!), anchors (&) and aliases (*) are not read: quote the text"
            )
        return event

    documents = []
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            root = following()
            if isinstance(root, yaml.MappingStartEvent):
                documents.append(mapping("the configuration", 0))
            elif isinstance(root, yaml.ScalarEvent) and text_of(root) is None:
                documents.append({})
            else:
                raise _error(root, "it must hold sections")
    if len(documents) > 1:
        raise ValueError(f"it holds {len(documents)} documents: one is accepted")
    return documents[0] if documents else {}


def _error(event, text: str) -> ValueError:
    return ValueError(f"line {event.start_mark.line + 1}: {text}")

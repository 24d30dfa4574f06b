"""The page of bounds: what every field of every question may hold, from actstore_api/bounds.py."""

from actstore_api.bounds import bound_of, fields_of_questions, full_name
from docs.hooks.tables import code, table

HEAD = """# Bounds of questions

Every text, list and number of every question has a bound. They are part of the contract, and the same everywhere. A
service and its workers check them before any work begins. A question with more is refused with
[LIMIT_EXCEEDED](errors.md), which names the field, its value and what is allowed. A number that is not finite, a name
with a control character, and an element that a list of names has twice are refused with
[ARGUMENT_INVALID](errors.md).

Operators may set lower limits on work, such as cells of a sweep or characters of a document:
[settings](settings.md) lists them. The model's context is a further limit on texts.

"""


def page() -> str:
    """Writes the page.

    Returns:
        Markdown.
    """
    bounds = {full_name(field): str(bound_of(field)) for field in fields_of_questions()}
    rows = [(code(name), bound) for name, bound in sorted(bounds.items()) if bound]
    return HEAD + table(("field", "bound"), rows)

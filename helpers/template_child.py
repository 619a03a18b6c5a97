"""The process that fills in a model's chat template. Run by `runner_child`, not by people.

A template is a program in the model's file, so it is treated as a stranger's: Jinja's sandbox keeps it from Python, a
process of its own from the model and the notebook; it gets little memory and little room, and the parent ends it when
it takes too long.
"""

import contextlib
import datetime
import json
import signal
import sys

from . import units
from .child import Parent

MOST_MEMORY_BYTES = 512 * units.MIB  # of address space; Python with Jinja maps below 100
MOST_CHARACTERS = 2_000_000  # of a prompt: more than any context holds
MOST_TEMPLATE_CHARACTERS = 1_000_000  # published ones have below 30,000
MOST_BITS = 4096  # of a whole number that it multiplies: beyond, one step can take hours, and no signal ends it


def environment():
    """Jinja's sandbox with what templates are written for: transformers' and llama.cpp's extras, and no file access."""
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the answer for training; here its content just stands."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context, operator, left, right):
            if _product_size(operator, left, right) > MOST_CHARACTERS:
                raise SecurityError(f"it asks for a result of enormous size ({operator})")
            return super().call_binop(context, operator, left, right)

    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    sandbox.filters["tojson"] = _tojson
    sandbox.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.datetime.now().strftime(form)}
    return sandbox


def _product_size(operator, left, right):
    """How large a product or a power gets: characters, elements, or for numbers beyond `MOST_BITS` too much."""
    for some, n in ((left, right), (right, left)):
        if isinstance(some, (str, list, tuple)) and isinstance(n, int):
            return len(some) * max(n, 0)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        return MOST_CHARACTERS + 1 if bits > MOST_BITS else 0
    return 0


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """Plain JSON: Jinja's own filter would write < and & as codes for web pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message):
    raise ValueError(message)


def prompt(template, messages, bos, eos):
    """The text that a model gets for these messages."""
    values = {"messages": messages, "bos_token": bos, "eos_token": eos, "add_generation_prompt": True}
    values |= dict.fromkeys(("tools", "tool_choice", "functions", "function_call"))
    pieces, n = [], 0
    for piece in template.generate(values):
        n += len(piece)
        if n > MOST_CHARACTERS:
            raise ValueError(f"it writes more than {MOST_CHARACTERS:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def limit_memory():
    """Let large allocations fail here, as a `MemoryError`, before the system looks for a process to end."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))


def serve():
    parent = Parent()
    sys.stdout = sys.stderr
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sandbox = environment()
    limit_memory()
    template = None
    for request in parent.requests():
        try:
            if "hello" in request:
                parent.send({})
            elif "template" in request:
                if len(request["template"]) > MOST_TEMPLATE_CHARACTERS:
                    raise ValueError(f"it is longer than {MOST_TEMPLATE_CHARACTERS:,} characters")
                template = sandbox.from_string(request["template"])
                parent.send({})
            else:
                parent.send({"prompt": prompt(template, request["messages"], request["bos"], request["eos"])})
        except MemoryError:
            parent.send({"error": "it asks for more memory than a template needs"})
        except RecursionError:
            parent.send({"error": "it is nested too deeply"})
        except Exception as error:  # whatever a stranger's program may raise
            parent.send({"error": units.printable(f"{error}" or type(error).__name__, 500)})


if __name__ == "__main__":
    serve()

"""What handles look like in a notebook and in a terminal: the same for `jos.run(...)` and `jos.Client()`.

`look` is what there is to see, `page` says it in HTML, `text` in plain lines, `watching` while it changes, `plots` in
pictures. May import: jos.core, jos.wire; IPython, matplotlib and pandas only where they are used.
Tests: tests/unit/test_shown.py, tests/unit/test_plots.py, tests/e2e/test_notebook.py. For people: docs/client.md.
"""

"""`python -m msvit`, for launchers such as torchrun."""

from msvit.cli import app

app(prog_name="msvit")

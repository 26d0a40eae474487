"""What a run needs before it is run: memory a device, hours, calls of judges, money; from its configuration alone.

configuration, sizes of its model, a topology → **a plan** → whether it fits, and what to change if not

Arithmetic only: no weights, no devices, no network. `chips` and `topology` are the hardware as data, `memory` and
`seconds` the formulas, `calls` what is asked of language models, `changes` the first change that fits.
"""

"""The Realm Initial Measurement of a launch, predicted from its command line or its plan.

`rim.measure` is the interface; the other modules read kvmtool's command line: `options` knows its
grammar, `numbers` its numbers, `devices` its device values, `command_line` its meaning.
"""

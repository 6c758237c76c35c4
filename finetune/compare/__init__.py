"""Comparisons: several methods on the same photos, prompts and noise, from a configuration to results.

`config` says what is compared, `suite` on which subjects and prompts, `plan` what each row's run is;
`run` makes the cells, `measure` scores their pictures, `summaries` sums up, `merge` joins several.
"""

"""Does a run keep the two channels apart?  Checked when a trainer is built, on its own GRPOConfig and plugins.

* `simulator`: the trainer on a tiny model, trained for a few steps
* `seal`: the comparisons
"""

"""Does a run keep the two channels apart?  Checked before every run, on its own flags and plugins.

* `simulator`: the host's trainer side in one process, on a tiny model
* `random_rollouts`: what goes through it
* `seal`: the comparisons
"""

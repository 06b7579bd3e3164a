from confession_plugin.judging.window import UnscoredWindow as FailureBudget

__all__ = ["FailureBudget"]

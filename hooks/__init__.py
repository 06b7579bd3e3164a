"""The built-in behaviours, each a plugin like anybody's: a class whose objects keep their own settings.

* `inject`: which prompts confess, what they are asked, how the report is read
* `judge`: routing a confession to the honesty judge
* `separate`: how honesty rewards become advantages
* `record`: metrics and the JSONL trace
"""

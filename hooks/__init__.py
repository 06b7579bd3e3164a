"""The built-in behaviours, each a plugin like anybody's:

* `inject`: which prompts confess, what they are asked, how the report is read
* `judge`: routing a confession to the honesty judge
* `separate`: how the two reward channels become advantages
* `record`: metrics and the JSONL trace
"""

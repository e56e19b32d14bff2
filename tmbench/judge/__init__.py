"""Judging: as few paired seeds as an honest answer to "is this optimizer better?" needs.

Seeds are run in rounds until a sequential test says that a method is better, worse or equivalent. A judgement is:

    <runs>/.judge/<name>/question.json   what is asked: the methods, the margin, the error level, the seeds
                         result.json     the verdict and all that it rests on; see docs/judge.md
    <runs>/.judge/ledger.json            all judgements that were ever begun in this folder of runs

All three carry a digest. The runs are ordinary ones, done by a sweep: those that are known are not done again, so the
same command continues a judgement that was interrupted. The page goes to <out>/<name>/.
"""

"""The paper's methods and figures, and the question when deep pursuit helps.

    python -m benchmarks.paper figure5 --quick        # 5, 13 and 14; likewise 6 to 12
    python -m benchmarks.paper question --quick       # one factor at a time
    python -m benchmarks.paper certified --quick      # certified radii of the synchronous solver

``configuration`` says what a cell is, ``cell`` runs one and keeps its result, ``grids`` lists the
cells of every figure, ``figures`` draws them. docs/paper.md holds what was found.
"""

"""Every predictor by its name."""

from collections.abc import Callable

from flowserve.core.predict.base import Predictor
from flowserve.core.predict.bins import Bins
from flowserve.core.predict.quantile import Quantile
from flowserve.core.predict.ranker import Ranker
from flowserve.core.predict.shares import Mean, Prior

PREDICTORS: dict[str, Callable[[], Predictor]] = {
    "prior": Prior,
    "mean": Mean,
    "quantile": Quantile,
    "bins": Bins,
    "ranker": Ranker,
}
"""By the name in `Config.predictor`."""

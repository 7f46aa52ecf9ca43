"""The paper's own numbers, copied exactly. They were not measured here.

Units are those of ``zim.metrics``. In Table 7 SMat's fine S, M and L equal Matting-Anything's
coarse ones; that is how the paper prints them.
"""

from __future__ import annotations

from typing import Any

LABEL = "paper, not measured here"

#: method, prompt, then SAD MSE MAE Grad Conn of fine and of coarse
_TABLE_1 = """\
SAM|point|68.076|21.651|23.307|16.496|67.730|17.093|5.569|5.756|4.800|17.035
SAM|box|36.086|11.057|12.714|14.867|35.834|3.516|1.044|1.231|2.551|3.450
SAM2|point|77.552|25.296|26.952|20.691|77.182|44.538|14.794|14.982|8.191|44.474
SAM2|box|38.386|12.024|13.680|14.536|38.123|2.301|0.613|0.800|2.440|2.236
HQ-SAM|point|110.681|36.674|38.331|16.855|110.421|18.842|6.457|6.645|4.599|18.792
HQ-SAM|box|124.262|42.457|44.144|13.673|124.113|8.458|2.733|2.920|2.472|8.400
Matte-Any|point|68.797|20.844|23.564|8.118|68.939|19.717|6.053|6.675|2.633|19.506
Matte-Any|box|34.661|9.746|12.182|7.021|34.856|6.950|1.983|2.445|2.142|6.905
Matting-Any|point|275.398|77.335|97.141|20.019|270.722|164.145|36.187|55.943|23.244|155.780
Matting-Any|box|246.214|68.372|87.617|19.185|241.597|109.639|23.780|38.662|15.841|102.439
SMat|point|363.821|123.664|128.651|28.669|362.767|177.392|59.113|62.622|20.420|176.125
SMat|box|390.360|133.515|138.330|28.418|389.478|183.200|61.157|64.678|20.614|181.927
ZIM|point|31.286|8.213|10.740|5.324|31.009|6.645|1.788|2.320|1.469|6.472
ZIM|box|9.961|1.893|3.426|4.813|9.655|1.860|0.448|0.659|1.281|1.807
"""

#: method, prompts, then AM-2K MSE, Grad, AIM-500 MSE, Grad
_TABLE_2 = """\
SAM|point/box|82.495/29.061|48.716/45.136|88.648/51.486|56.331/56.885
SAM2|point/box|55.614/25.132|49.568/45.339|84.867/39.539|62.052/55.519
HQ-SAM|point/box|47.911/11.212|41.366/33.890|63.222/18.687|49.596/46.190
Matte-Any|point/box|82.079/27.293|21.677/18.790|83.310/38.497|33.330/30.333
Matting-Any|point/box|29.144/6.969|19.199/16.711|44.443/12.786|31.193/28.214
SMat|point/box|104.492/3.788|37.493/17.288|83.180/7.869|42.936/27.238
ZIM|point/box|22.600/3.601|15.682/14.378|42.422/24.337|27.819/25.492
"""

#: method, backbone, ms on a V100, then MSE (point/box) of fine and its S, M, L, and so for coarse
_TABLE_7 = """\
SAM|ViT-B|172.5|21.651/11.057|2.717/0.329|7.145/2.983|70.502/38.501|5.569/1.044|4.092/0.181|5.405/2.456|77.761/24.519
SAM|ViT-L|361.6|15.663/7.989|3.312/0.320|5.165/2.423|49.202/27.276|4.293/0.534|3.640/0.145|3.389/1.606|46.278/5.575
SAM|ViT-H|605.2|14.534/6.188|3.619/0.281|5.753/1.687|43.371/21.389|2.100/0.468|0.653/0.152|3.278/1.334|56.086/4.610
SAM2|Hiera-B+|147.4|25.296/12.024|15.657/0.322|15.970/2.155|53.346/43.670|14.794/0.613|14.786/0.152|12.128/1.600|49.058/10.194
SAM2|Hiera-L|195.0|16.937/10.616|0.871/0.263|5.613/1.888|56.702/38.636|2.572/0.704|0.954/0.149|4.308/1.424|57.804/18.019
HQ-SAM|ViT-B|177.2|36.674/42.457|5.094/0.392|9.356/4.369|123.199/160.456|6.457/2.733|3.602/0.230|9.596/2.521|102.834/124.372
HQ-SAM|ViT-L|368.1|20.481/19.881|1.928/0.326|6.496/2.683|67.979/73.913|3.046/0.762|1.200/0.163|4.987/1.408|66.373/21.129
HQ-SAM|ViT-H|608.1|22.547/23.743|5.308/0.263|6.601/2.538|71.446/89.518|3.599/0.789|1.659/0.164|5.034/1.266|77.643/24.469
Matte-Any|ViT-B|668.5|20.844/9.746|3.381/0.918|7.953/3.856|65.108/31.109|6.053/1.983|4.739/1.235|5.897/3.039|70.443/24.426
Matte-Any|ViT-L|814.1|15.230/7.323|3.985/0.975|6.243/3.692|44.842/21.711|5.116/1.597|4.570/1.222|3.996/2.418|44.606/9.119
Matte-Any|ViT-H|1036.9|14.119/6.048|4.270/0.917|7.085/2.992|38.704/17.872|3.022/1.571|1.669/1.228|3.913/2.294|56.044/8.836
Matting-Any|ViT-B|200.3|77.335/68.372|27.256/18.286|41.349/33.111|202.692/192.566|36.187/23.780|31.549/17.344|40.993/36.194|197.340/175.418
SMat|ViT-B|263.4|123.664/133.515|31.549/17.344|40.993/36.194|197.340/175.418|59.113/61.157|52.305/53.280|68.709/74.099|250.587/261.544
ZIM|ViT-B|187.8|8.213/1.893|0.870/0.205|3.962/2.228|24.934/3.617|1.788/0.448|1.444/0.200|1.731/1.382|18.983/0.632
ZIM|ViT-L|373.4|5.825/1.589|0.563/0.191|2.724/1.888|17.898/2.982|1.719/0.446|1.041/0.175|1.574/1.458|35.687/0.686
"""

_METRICS = ("sad", "mse", "mae", "grad", "conn")


def table1() -> list[dict[str, Any]]:
    """Return rows with ``method``, ``prompt`` and values by (group, metric)."""
    rows = []
    for line in _TABLE_1.splitlines():
        method, prompt, *values = line.split("|")
        names = [(group, metric) for group in ("fine", "coarse") for metric in _METRICS]
        cells = dict(zip(names, map(float, values), strict=True))
        rows.append({"method": method, "prompt": prompt, "cells": cells})
    return rows


def table2() -> list[dict[str, Any]]:
    """Return rows with ``method``, ``prompt`` and values by (data set, metric)."""
    rows = []
    for line in _TABLE_2.splitlines():
        method, prompts, *values = line.split("|")
        names = [(name, metric) for name in ("am2k", "aim500") for metric in ("mse", "grad")]
        for k, prompt in enumerate(prompts.split("/")):
            cells = {
                name: float(value.split("/")[k]) for name, value in zip(names, values, strict=True)
            }
            rows.append({"method": method, "prompt": prompt, "cells": cells})
    return rows


def table7() -> list[dict[str, Any]]:
    """Return rows with ``method``, ``backbone``, ``ms``, ``prompt``, MSE by (group, size)."""
    rows = []
    for line in _TABLE_7.splitlines():
        method, backbone, ms, *values = line.split("|")
        names = [(group, size) for group in ("fine", "coarse") for size in ("all", "S", "M", "L")]
        for k, prompt in enumerate(("point", "box")):
            cells = {
                name: float(value.split("/")[k]) for name, value in zip(names, values, strict=True)
            }
            rows.append(
                {
                    "method": method,
                    "backbone": backbone,
                    "ms": float(ms),
                    "prompt": prompt,
                    "cells": cells,
                }
            )
    return rows

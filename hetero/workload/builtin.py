"""Workloads by name. Where each number is from stands in docs/workloads.md, row by row."""

from hetero.workload.workload import Workload

CHAT = Workload(
    name="chat",
    prefix=128,
    prompt="quantiles:0=1:5=53:10=79:25=268:50=892:75=1061:90=2606:95=3955:99=4014:100=13922",
    output="quantiles:0=7:1=16:5=41:10=54:25=85:50=129:75=395:90=424:95=451:99=601:100=1000",
    turns="geometric:1.45",
    followup="quantiles:0=1:10=7:25=12:50=38:75=528:90=4766:95=7723:100=18158",
    think="lognormal:13.5:62.4",
    arrivals="gamma:0.84",
)

DOCUMENT = Workload(
    name="document",
    prefix="quantiles:0=2507:10=3584:25=8704:50=18176:75=34816:90=45568:95=54784:100=65536",
    prefixes=100,
    prompt="quantiles:0=1:10=1:25=113:50=332:75=516:90=963:95=1259:99=1936:100=3795",
    output="quantiles:0=1:5=2:10=3:25=7:50=25:75=119:90=278:95=348:99=502:100=893",
    arrivals="poisson",
)

CODE = Workload(
    name="code",
    prompt="quantiles:0=3:1=17:5=75:10=147:25=578:50=1469:75=2745:90=5188:95=7303:100=7437",
    output="quantiles:0=6:5=6:10=7:25=9:50=13:75=24:90=55:95=90:99=251:99.9=825:100=1899",
    arrivals="gamma:0.25",
)

AGENT = Workload(
    name="agent",
    prefix=6144,
    prefixes=10,
    prefix_skew=1.0,
    prompt="lognormal:500:3000",
    output="lognormal:mean=182:sigma=1",
    turns="geometric:8.8",
    followup="lognormal:793:5720:max=12800",
    think="exponential:2",
    arrivals="poisson",
)

BUILTIN = {workload.name: workload for workload in (CHAT, DOCUMENT, CODE, AGENT)}

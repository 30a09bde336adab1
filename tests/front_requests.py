"""A completion of a deployment, asked from its front as a load generator would."""

import json
import subprocess
import sys

from hetero.experiment.deploy.site import FRONT

PATIENCE_S = 60

ASK = """
import http.client, sys
from urllib.parse import urlsplit
url = urlsplit(sys.argv[1])
connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
connection.request("POST", "/v1/completions", sys.argv[2], {"content-type": "application/json"})
print(connection.getresponse().read().decode())
"""


def complete(site, url, **body):
    """The answer, without errors."""
    body = {"model": "demo", "prompt": "amber fox lisbon\n" * 60, "max_tokens": 8} | body
    ask = [sys.executable, "-S", "-c", ASK, url, json.dumps(body | {"temperature": 0})]
    with site.popen(FRONT, ask, stdout=subprocess.PIPE, text=True) as asking:
        answer = json.loads(asking.communicate(timeout=PATIENCE_S)[0])
    assert "error" not in answer, answer
    return answer

"""真正的浏览器，没有窗口：经管道用 Chrome DevTools 协议指挥，不占端口，不要别的库，也不联网。"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run
--disable-background-networking --disable-component-update --disable-sync --disable-extensions --hide-scrollbars
--remote-debugging-pipe about:blank""".split()
TIMEOUT = 60
KEY_CODES = {
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "End": 35,
    "Home": 36,
    "Tab": 9,
    "Enter": 13,
}


def find_browser() -> str | None:
    """Chromium 的路径；没有装就是 None。"""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """浏览器里的一个标签页。errors 是至今的脚本错误和控制台里的错误，requests 是要过的网址。"""

    def __init__(self, browser: str, profile: Path):
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._count, self._buffer, self._session = 0, b"", None
        self._pid, self._commands, self._replies = start_browser(browser, profile)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters) -> dict:
        """发一条命令，等到它的回答；其间的事件顺便记下。"""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        remaining = json.dumps(message).encode() + b"\0"
        while remaining:
            remaining = remaining[os.write(self._commands, remaining) :]
        while (reply := self._read()).get("id") != self._count:
            self._record(reply)
        if "error" in reply:
            raise RuntimeError(f"{method}：{reply['error']}")
        return reply["result"]

    def _read(self) -> dict:
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self._buffer:
            if not select.select([self._replies], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("浏览器没有回答")
            data = os.read(self._replies, 1 << 20)
            if not data:
                raise RuntimeError("浏览器退出了")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _record(self, event: dict) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.errors.append(str(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    def open(self, path: Path) -> None:
        """打开本地的文件，等脚本都跑完。"""
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("document.readyState === 'complete' && location.protocol === 'file:'")

    def wait_for(self, condition: str) -> None:
        """等到条件成立，再等画过一帧：监听的函数都跑过了。"""
        deadline = time.monotonic() + TIMEOUT
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"没有等到：{condition}"
            time.sleep(0.01)
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def evaluate(self, expression: str):
        """在页面里算一个表达式。"""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def resize(self, width: int, height: int = 900) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.wait_for(f"innerWidth === {width}")

    def prefer(self, theme: str) -> None:
        """系统的主题：light 或 dark。"""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.wait_for(f"matchMedia('(prefers-color-scheme: {theme})').matches")

    def press(self, key: str) -> None:
        """按一下键盘。"""
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=KEY_CODES[key])

    def center(self, selector: str) -> tuple[float, float]:
        """滚到元素那里，返回它的中心在窗口里的坐标。"""
        return tuple(
            self.evaluate(
                f"""(() => {{ const node = document.querySelector({json.dumps(selector)});
                node.scrollIntoView({{ block: "center" }}); const box = node.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2]; }})()"""
            )
        )

    def hover(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        self.hover(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path, full: bool = True) -> None:
        """整页的图片，给人看。"""
        result = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(result["data"]))

    def close(self) -> None:
        os.close(self._commands)
        os.close(self._replies)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def start_browser(browser: str, profile: Path) -> tuple[int, int, int]:
    """-> (进程号, 写命令的描述符, 读回答的描述符)。浏览器从 3 号读，往 4 号写。"""
    command_read, command_write = os.pipe()
    reply_read, reply_write = os.pipe()
    # 先挪到 10 号以后，装到 3、4 号时才不会互相盖掉
    theirs = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10) for descriptor in (command_read, reply_write)]
    os.close(command_read)
    os.close(reply_write)
    quiet = os.open(os.devnull, os.O_WRONLY)
    actions = [(os.POSIX_SPAWN_DUP2, theirs[0], 3), (os.POSIX_SPAWN_DUP2, theirs[1], 4)]
    actions += [(os.POSIX_SPAWN_DUP2, quiet, 1), (os.POSIX_SPAWN_DUP2, quiet, 2)]
    arguments = [browser, *FLAGS, f"--user-data-dir={profile}"]
    pid = os.posix_spawn(browser, arguments, os.environ, file_actions=actions)
    for descriptor in (*theirs, quiet):
        os.close(descriptor)
    return pid, command_write, reply_read

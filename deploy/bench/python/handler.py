"""The function that doze bench calls: echo, or sleep first when the event says so."""
import os
import time

INSTANCE = os.urandom(8).hex()


def handler(event, context):
    if "sleepMs" not in event:
        return event
    started = time.time_ns() // 1000
    time.sleep(event["sleepMs"] / 1000)
    return {"instance": INSTANCE, "startedMicros": started}

"""Writes the input of the example: orders.csv, half a year of a shop, and event.json, which carries it.

What it writes is committed; the same seed gives the same file.
"""

import datetime
import json
import random

PRODUCTS = {"kettle": 3490, "lamp": 5995, "chair": 12900, "desk": 34900, "mug": 895, "clock": 2450}
REGIONS = ["north", "south", "east", "west"]
WRONG = {
    57: "2026-02-30,1056,north,lamp,1,59.95",
    131: "2026-03-05,1130,west,mug,none,8.95",
    219: "2026-04-18,1218,south,chair,2,12.905",
    288: "2026-05-29,1287,east,clock,1",
}


def main():
    rng = random.Random(20260101)
    lines = ["date,order,region,product,quantity,unit_price"]
    for n in range(1, 361):
        if n in WRONG:
            lines.append(WRONG[n])
            continue
        date = datetime.date(2026, 1, 1) + datetime.timedelta(days=n // 2)
        product = rng.choice(list(PRODUCTS))
        cents = PRODUCTS[product] * rng.choice([100, 100, 100, 90, 80]) // 100
        region = rng.choices(REGIONS, weights=[4, 3, 2, 1])[0]
        quantity = min(12, 1 + int(rng.expovariate(0.7)))
        lines.append(f"{date},{999 + n},{region},{product},{quantity},{cents // 100}.{cents % 100:02d}")
    text = "\n".join(lines) + "\n"
    with open("orders.csv", "w", encoding="utf-8", newline="") as f:
        f.write(text)
    with open("event.json", "w", encoding="utf-8", newline="") as f:
        json.dump({"csv": text, "groupBy": "region"}, f)
        f.write("\n")


if __name__ == "__main__":
    main()

"""Report is an example function: it turns a CSV of orders into the figures a shop looks at.

It is an ordinary Lambda function in Python (standard library only) and knows nothing of Doze.

Event:  {"csv": "date,order,region,product,quantity,unit_price\n...", "groupBy": "region"}
Answer: totals, percentiles of the orders' values, a table by group and one by month, and the
rows that could not be read, each with its line and the reason.
"""

import csv
import datetime
import io
from decimal import Decimal, InvalidOperation

COLUMNS = ("date", "order", "region", "product", "quantity", "unit_price")
GROUPS = ("region", "product", "date")
MAX_REJECTED = 20


def handler(event, context):
    text = event.get("csv")
    if not isinstance(text, str):
        raise ValueError("the event has no csv")
    group_by = event.get("groupBy", "region")
    if group_by not in GROUPS:
        raise ValueError("groupBy must be one of " + ", ".join(GROUPS))

    orders, rejected = read(text)
    values = sorted(o["cents"] for o in orders)
    return {
        "orders": len(orders),
        "units": sum(o["quantity"] for o in orders),
        "revenue": money(sum(values)),
        "average": money(round_half_up(sum(values), len(values))) if values else None,
        "percentiles": {f"p{p}": money(percentile(values, p)) for p in (50, 90, 99)} if values else {},
        "groupBy": group_by,
        "groups": groups(orders, lambda o: o[group_by]),
        "months": sorted(groups(orders, lambda o: o["date"][:7]), key=lambda g: g["name"]),
        "rejected": {"rows": len(rejected), "first": rejected[:MAX_REJECTED]},
    }


def read(text):
    """Reads the rows. A row that is wrong is told about, not fatal."""
    lines = csv.DictReader(io.StringIO(text, newline=""))
    missing = [c for c in COLUMNS if c not in (lines.fieldnames or ())]
    if missing:
        raise ValueError("the csv has no column " + ", ".join(missing))
    orders, rejected = [], []
    for row in lines:
        try:
            orders.append(parse(row))
        except ValueError as e:
            rejected.append({"line": lines.line_num, "reason": str(e)})
    return orders, rejected


def parse(row):
    if None in row or None in row.values():
        raise ValueError("wrong number of columns")
    try:
        date = datetime.date.fromisoformat(row["date"]).isoformat()
    except ValueError:
        raise ValueError(f"date {row['date']!r} is not a day") from None
    if not row["quantity"].isascii() or not row["quantity"].isdigit() or int(row["quantity"]) == 0:
        raise ValueError(f"quantity {row['quantity']!r} is not a number above 0")
    try:
        cents = Decimal(row["unit_price"]) * 100
    except InvalidOperation:
        raise ValueError(f"unit_price {row['unit_price']!r} is not an amount") from None
    if not cents.is_finite() or cents < 0 or cents != int(cents):
        raise ValueError(f"unit_price {row['unit_price']!r} is not an amount in whole cents")
    quantity = int(row["quantity"])
    return {
        "date": date,
        "region": row["region"],
        "product": row["product"],
        "quantity": quantity,
        "cents": quantity * int(cents),
    }


def groups(orders, key):
    """One line a group, the largest revenue first."""
    found = {}
    for o in orders:
        g = found.setdefault(key(o), {"orders": 0, "units": 0, "cents": 0, "largest": 0})
        g["orders"] += 1
        g["units"] += o["quantity"]
        g["cents"] += o["cents"]
        g["largest"] = max(g["largest"], o["cents"])
    total = sum(g["cents"] for g in found.values())
    ordered = sorted(found.items(), key=lambda item: (-item[1]["cents"], item[0]))
    return [
        {
            "name": name,
            "orders": g["orders"],
            "units": g["units"],
            "revenue": money(g["cents"]),
            "sharePercent": round_half_up(1000 * g["cents"], total) / 10 if total else 0,
            "largestOrder": money(g["largest"]),
        }
        for name, g in ordered
    ]


def percentile(ordered, p):
    """The nearest-rank percentile: a value that occurs, not one between two."""
    return ordered[-(-p * len(ordered) // 100) - 1]


def round_half_up(a, b):
    return (2 * a + b) // (2 * b)


def money(cents):
    """Cents as text: exact, and not a float."""
    return f"{cents // 100}.{cents % 100:02d}"

"""What looks like code and what does not, by examples in many languages of both kinds."""

import math

import pytest

from rewards.codelike import code_share, looks_like_code

CODE = {
    "python": """
def mean(values):
    total = 0
    for value in values:
        total += value
    return total / len(values)
""",
    "script": """
import numpy as np
from math import sqrt

x = np.linspace(0, 1)
print(sqrt(2))
""",
    "one-line": "def square(x): return x * x",
    "javascript": """
function greet(name) {
  const greeting = `Hello, ${name}`;
  console.log(greeting);
}
""",
    "arrow": """
const double = (x) => {
  return 2 * x;
};
items.map(double);
""",
    "c": """
#include <stdio.h>

int main(void) {
    int n = 5;
    printf("%d\\n", n);
    return 0;
}
""",
    "c++": """
using namespace std;
int main() {
    vector<int> values = {1, 2, 3};
    cout << values.size() << endl;
}
""",
    "java": """
import java.util.List;

public class Hello {
    public static void main(String[] args) {
        System.out.println("Hello");
    }
}
""",
    "go": """
package main

import "fmt"

func main() {
\tfmt.Println("hello")
}
""",
    "rust": """
fn main() {
    let name = "world";
    println!("hello {}", name);
}
""",
    "sql": """
SELECT name, count(*)
FROM customers
WHERE age > 30
GROUP BY name
""",
    "html": """
<!DOCTYPE html>
<html>
<body>
<p class="big">Hello</p>
</body>
</html>
""",
    "fenced": "Here is how you do it:\n\n```python\nx = 1\n```\nI hope that it helps.",
    "no language": "Like so:\n```\nx = 1\n```",
    "in a list": "1. First, write\n\n    ~~~ bash\n    ls\n    ~~~\n2. Then look at it.",
    "cut off": "Of course! Here you are:\n\n```js\nlet total = ",
    "after a quotation": "```text\nhello\n```\nis printed by\n```c\nputs(hello);\n```",
}

NO_CODE = {
    "prose": """
The class of 1999 met in Paris; some had not seen each other for years.
If you want to know more, return to the first page. For example, import taxes
from abroad are due while you wait.
""",
    "german": "Die Klasse traf sich in Köln (am Rhein); dann gingen alle nach Hause.\nDanke!",
    "french": "Il faut acheter :\n- du lait ;\n- du pain (deux) ;\n- des œufs ;\n",
    "russian": "Список покупок:\n1) молоко;\n2) хлеб (чёрный);\n3) соль.\n",
    "chinese": "今天天气很好。\n我们去公园（在城里）；然后回家。",
    "arabic": "ذهبنا إلى المدرسة؛ ثم عدنا إلى البيت.",
    "hindi": "आज मौसम अच्छा है।\nहम बाज़ार जाएँगे।",
    "list": """
# Packing list

Things to take:
* a tent (for two);
* water: 3 litres;
- [ ] matches
- **bread** and `salt`
""",
    "numbered": "1. Open the door.\n2. If it is shut:\n   - ring it;\n   - wait.\n3. Go in.",
    "table": "| name | age |\n|------|-----|\n| Ann  | 30  |\n| Bob  | 41  |",
    "steps": """
Let x = 5 and y = 3.
x + y = 8
area = length * width
P = 2(l + w)
f(x) = 3x^2 - 2x + 1
gcd(48, 18) = gcd(18, 12)
Therefore, f(2) = 9.
""",
    "latex": r"""
\begin{align}
x &= 3 + 4 \\
f(x) &= \frac{1}{2} \left\{ x^2 \right\} \\
A &= \{1, 2, 3\}
\end{align}
$$ \int_0^1 x\,dx = \tfrac{1}{2} $$
""",
    "piecewise": "f(x) = {\n  x if x > 0\n  0 otherwise\n}",
    "equations": "x = 2;\ny = 3;\nz = x + y = 5.",
    "proof": "for every x in A: x > 0\nif x = 1, then f(x) = 2\nso S = {1, 2}",
    "tags": "<calculation>1 + 1 = 2</calculation>\n<score>2</score>\n<answer>42</answer>",
    "poem": "for all the roads I took\nwhile rain fell on the town\nreturn to me, my book",
    "letter": "Dear Ann,\n\nthanks (to Bob, too); we came home:\n\n    safe.\n\nYours, Eve",
    "inline": "Call `print(x)` and then `x.sort()`; ``` is a fence.",
    "fenced text": "The poem:\n```text\nroses are red\n```\nIt is short.",
    "fenced maths": "```latex\nx = 1\n```",
    "names": "C++",
    "word": "return",
    "words": "red green blue",
    "bracket": "}",
    "url": "See https://example.org/a?b=c;d and www.example.com.",
    "long line": "if " + "the sum (of all) = 3, and " * 9 + "so on:",
    "mostly prose": "You can sort a list in place.\nTo do so, write:\nx.sort()\nThat is all.",
    "empty": "",
}


@pytest.mark.parametrize("text", CODE.values(), ids=CODE)
def test_code(text):
    assert looks_like_code(text)


@pytest.mark.parametrize("text", NO_CODE.values(), ids=NO_CODE)
def test_no_code(text):
    assert not looks_like_code(text)


def test_more_than_half_of_the_lines():
    assert looks_like_code("Write:\nx.sort()\nprint(x)")
    assert not looks_like_code("Write this:\nx.sort()")


def test_share():
    assert code_share(["print(1)", "one", "two", "three"]) == 0.25
    assert math.isnan(code_share([]))

"""Every text that a person reads, one place per language. The field's own words, the same in both.

Static texts go to the page through gr.I18n; what handlers say is chosen by the visitor's language with `say`. Keys that begin with
"view_" are handed to the viewer's script. core speaks English only: `sentence` says its refusals in the visitor's language.
"""

import re

EN = {
    # header
    "name": "Inside Stable Diffusion",
    "model": "Model",
    "device_waiting": "model not loaded yet",
    "queue_free": "free",
    "queue_one": "1 run in the queue",
    "queue_many": "{count} runs in the queue",
    "projector": "Projector",
    "looking_at": "Looking at the run",
    # the Prompt tab
    "tab_prompt": "Prompt",
    "prompt_question": "How does noise become a picture?",
    "prompt_about": "Stable Diffusion starts from pure noise. At each step its UNet predicts the noise that is still in it, and the scheduler takes a little of that away. Your words steer every prediction.",
    "prompt_try": "Try guidance 1 with the same seed. What goes missing?",
    "prompt_try_button": "Try it",
    "prompt": "Prompt",
    "prompt_placeholder": "a panda on a blue background",
    "negative": "Negative prompt",
    "negative_placeholder": "what the picture should move away from",
    "draw": "Draw",
    "draw_key": "Enter draws, Shift+Enter makes a new line. Ctrl+Enter draws from anywhere.",
    "stop": "Stop",
    "steps": "Steps",
    "guidance": "Guidance scale w",
    "guidance_info": "0 ignores the prompt, 1 follows it, more exaggerates it",
    "scheduler": "Scheduler",
    "seed": "Seed",
    "seed_placeholder": "a new one each time",
    "dice": "New seed",
    "reuse": "Reuse seed",
    "more": "More",
    "width": "Width",
    "height": "Height",
    "size_placeholder": "model’s own",
    "interval_first": "Guidance from step",
    "interval_last": "to step",
    "interval_first_placeholder": "first",
    "interval_last_placeholder": "last",
    "interval_info": "Outside these steps w is 1. Leave both empty to guide every step.",
    "interval": "Guidance interval",
    "open": "Open a saved PNG",
    "drop": "Or drop it anywhere on this page: its settings come back.",
    # tokens
    "tokens_count": "{used} of 77 tokens",
    "tokens_none": "No words: the unconditional picture.",
    "tokens_cut": "Not read:",
    "tokens_start": "start",
    "tokens_end": "end",
    "tokens_about": "What the text encoder reads: pieces of words, each with its number in the vocabulary.",
    # what a run says
    "status_queued": "Waiting: place {place} in the queue.",
    "status_loading": "Loading the model; the first run waits for it.",
    "status_starting": "Starting from pure noise.",
    "status_running": "Step {i} of {count}, {seconds} s left.",
    "status_decoding": "The VAE decodes the latents into pixels.",
    "status_done": "Finished: {count} steps in {seconds} s. Seed {seed}.",
    "status_stopped": "Stopped after step {i} of {count}. These steps can be looked at; there is no finished picture.",
    "status_stopped_early": "Stopped before its first step.",
    "status_example": "A finished example to look into. Drag through its steps, or write your own.",
    "status_restored": "Settings restored. Draw to get this picture again.",
    # runs
    "runs": "Your runs",
    "runs_about": "The last eight, while the server has room for them. Click one to look into it again.",
    "runs_example": "Example",
    "runs_stopped": "Stopped",
    "runs_settings": "Use settings",
    "runs_compare": "Compare",
    "runs_no_words": "(no words)",
    "runs_how": "w {guidance}, {steps} steps",
    "runs_seed": "seed {seed}",
    "compare_same": "The same settings.",
    "compare_title": "Before and after",
    "compare_close": "Close",
    # refusals of this page
    "no_model": "The PNG was made by the model {model}, which is not in this app’s menu; the model stays as it is.",
    # the viewer
    "view_empty": "Write a prompt and press Draw. Every step of the run will appear here.",
    "view_x": "Noisy latents",
    "view_x_tip": "Latents are the small picture of numbers that Stable Diffusion paints in: four numbers for every 8 × 8 pixels. Their colours here are a cheap preview.",
    "view_x0": "The picture they point to",
    "view_x0_tip": "The noisy latents minus all of the noise that the UNet predicts: its guess, at this step, of the clean picture.",
    "view_end_x": "Last latents",
    "view_picture": "Finished picture",
    "view_picture_tip": "The VAE’s decoder turns the last latents into pixels.",
    "view_remove": "remove the predicted noise",
    "view_decode": "decode",
    "view_step": "Step {i} of {count}",
    "view_end": "Finished",
    "view_slider": "Step of the run",
    "view_t": "the time that the UNet is told, from 999 (noise) to 0 (picture)",
    "view_sigma": "the noise’s standard deviation beside a clean picture of 1",
    "view_alpha": "the picture’s share of the variance",
    "view_share_signal": "picture",
    "view_share_noise": "noise",
    "view_play": "Play",
    "view_pause": "Pause",
    "view_smooth": "Smooth",
    "view_smooth_tip": "Latents are enlarged as they are, one square for each; this blends them.",
    "view_save": "Save PNG",
    "view_restore": "Use its settings",
    "view_equation": "What was the noise prediction made of?",
    "view_equation_guided": "The UNet predicts twice: without the prompt and with it. Guidance goes past the second, away from the first. The pictures add up, spot by spot; the numbers are strengths (root mean square, 1 = unit noise).",
    "view_equation_cond": "With w = 1 the prediction with the prompt is used as it is, and the other is not needed.",
    "view_equation_uncond": "With w = 0 the prompt is not read at all.",
    "view_equation_end_title": "How do latents become pixels?",
    "view_equation_end": "After the last step nothing is predicted any more: {latent} latent numbers become {pixel} pixel numbers.",
    "view_eps": "guided",
    "view_uncond": "without the prompt",
    "view_cond": "with the prompt",
    "view_pull": "what the prompt changes",
    "view_words": "Where did it look for a word?",
    "view_words_tip": "Cross-attention, averaged over all steps and layers: the brighter, the more this spot looked at the word.",
    "view_clipped": "{share} % clipped",
    "view_clipped_tip": "So many of the values lie outside what a screen can show, and are drawn at its limit.",
    "view_wrong": "{count} spots are not numbers",
    "view_alt": "{what}, step {i} of {count}",
}

JA = {
    "name": "Inside Stable Diffusion",
    "model": "モデル",
    "device_waiting": "モデルは未読み込み",
    "queue_free": "空いています",
    "queue_one": "実行待ち 1 件",
    "queue_many": "実行待ち {count} 件",
    "projector": "投影用",
    "looking_at": "見ている実行",
    "tab_prompt": "プロンプト",
    "prompt_question": "ノイズはどうやって絵になるの？",
    "prompt_about": "Stable Diffusion は、ただのノイズから出発します。ステップごとに UNet が「まだ残っているノイズ」を予測し、スケジューラーがそれを少しずつ取り除きます。どの予測も、あなたの言葉に導かれています。",
    "prompt_try": "同じシードのまま、ガイダンスを 1 にしてみましょう。何が消えますか？",
    "prompt_try_button": "試す",
    "prompt": "プロンプト",
    "prompt_placeholder": "a panda on a blue background",
    "negative": "ネガティブプロンプト",
    "negative_placeholder": "絵から遠ざけたいもの",
    "draw": "描く",
    "draw_key": "Enter で描画、Shift+Enter で改行。Ctrl+Enter はどこからでも描画します。",
    "stop": "停止",
    "steps": "ステップ数",
    "guidance": "ガイダンススケール w",
    "guidance_info": "0 はプロンプトを無視、1 はそのまま、大きいほど強調",
    "scheduler": "スケジューラー",
    "seed": "シード",
    "seed_placeholder": "毎回新しい値",
    "dice": "新しいシード",
    "reuse": "シードを再利用",
    "more": "詳細設定",
    "width": "幅",
    "height": "高さ",
    "size_placeholder": "モデルの標準",
    "interval_first": "ガイダンス開始ステップ",
    "interval_last": "終了ステップ",
    "interval_first_placeholder": "最初",
    "interval_last_placeholder": "最後",
    "interval_info": "この区間の外では w は 1 になります。両方を空にすると全ステップに効きます。",
    "interval": "ガイダンス区間",
    "open": "保存した PNG を開く",
    "drop": "このページのどこにドロップしても、設定が戻ります。",
    "tokens_count": "{used} / 77 トークン",
    "tokens_none": "言葉なし：無条件の絵になります。",
    "tokens_cut": "読まれない部分：",
    "tokens_start": "開始",
    "tokens_end": "終了",
    "tokens_about": "テキストエンコーダーが読むもの。単語のかけらと、その語彙番号です。",
    "status_queued": "順番待ち：{place} 番目です。",
    "status_loading": "モデルを読み込んでいます。最初の実行だけ待ち時間があります。",
    "status_starting": "ただのノイズから始めます。",
    "status_running": "ステップ {i} / {count}、残り {seconds} 秒。",
    "status_decoding": "VAE が潜在表現を画素に戻しています。",
    "status_done": "完成：{count} ステップ、{seconds} 秒。シード {seed}。",
    "status_stopped": "{count} ステップ中 {i} で停止しました。ここまでの各ステップは見られますが、完成した絵はありません。",
    "status_stopped_early": "最初のステップの前に停止しました。",
    "status_example": "完成済みの例です。ステップを動かして中を見るか、自分の言葉で描いてみましょう。",
    "status_restored": "設定を戻しました。「描く」で同じ絵がもう一度描けます。",
    "runs": "これまでの実行",
    "runs_about": "このサーバーが動いている間、最新の 8 件を残します。クリックするともう一度中を見られます。",
    "runs_example": "例",
    "runs_stopped": "停止",
    "runs_settings": "設定を使う",
    "runs_compare": "比べる",
    "runs_no_words": "（言葉なし）",
    "runs_how": "w {guidance}、{steps} ステップ",
    "runs_seed": "シード {seed}",
    "compare_same": "同じ設定です。",
    "compare_title": "比較",
    "compare_close": "閉じる",
    "no_model": "この PNG はモデル {model} で作られましたが、このアプリのメニューにはありません。モデルはそのままにします。",
    "view_empty": "プロンプトを書いて「描く」を押してください。すべてのステップがここに現れます。",
    "view_x": "ノイズを含む潜在表現",
    "view_x_tip": "潜在表現とは、Stable Diffusion が絵を描く小さな数の画面です。8 × 8 画素ごとに 4 つの数を持ちます。ここの色は簡易プレビューです。",
    "view_x0": "それが指し示す絵",
    "view_x0_tip": "ノイズを含む潜在表現から、UNet が予測したノイズをすべて引いたもの。このステップでの「きれいな絵」の推測です。",
    "view_end_x": "最後の潜在表現",
    "view_picture": "完成した絵",
    "view_picture_tip": "VAE のデコーダーが、最後の潜在表現を画素に変えます。",
    "view_remove": "予測したノイズを除く",
    "view_decode": "デコード",
    "view_step": "ステップ {i} / {count}",
    "view_end": "完成",
    "view_slider": "実行のステップ",
    "view_t": "UNet に伝える時刻。999（ノイズ）から 0（絵）まで",
    "view_sigma": "きれいな絵を 1 としたときの、ノイズの標準偏差",
    "view_alpha": "分散のうち絵が占める割合",
    "view_share_signal": "絵",
    "view_share_noise": "ノイズ",
    "view_play": "再生",
    "view_pause": "一時停止",
    "view_smooth": "なめらかに",
    "view_smooth_tip": "潜在表現は一つを一つの四角のまま拡大します。これを入れると混ぜて表示します。",
    "view_save": "PNG を保存",
    "view_restore": "この設定を使う",
    "view_equation": "ノイズの予測は何からできている？",
    "view_equation_guided": "UNet は二度予測します。プロンプトなしと、ありとで。ガイダンスは前者から離れる向きに、後者を通り越して進みます。絵は場所ごとに足し算になっています。数は強さです（二乗平均平方根、1 = 単位ノイズ）。",
    "view_equation_cond": "w = 1 では、プロンプトありの予測をそのまま使い、もう一方は要りません。",
    "view_equation_uncond": "w = 0 では、プロンプトはまったく読まれません。",
    "view_equation_end_title": "潜在表現はどうやって画素になる？",
    "view_equation_end": "最後のステップの後は、もう何も予測しません。{latent} 個の潜在表現の数が、{pixel} 個の画素の数になります。",
    "view_eps": "ガイダンス後",
    "view_uncond": "プロンプトなし",
    "view_cond": "プロンプトあり",
    "view_pull": "プロンプトが変える分",
    "view_words": "言葉をどこに探した？",
    "view_words_tip": "クロスアテンションを全ステップ・全層で平均したもの。明るい場所ほど、その言葉をよく見ていました。",
    "view_clipped": "{share} % が範囲外",
    "view_clipped_tip": "これだけの値が画面で表せる範囲の外にあり、限界の色で描かれています。",
    "view_wrong": "{count} か所が数値ではありません",
    "view_alt": "{what}、ステップ {i} / {count}",
}

LANGUAGES = {"en": EN, "ja": JA}

# What core refuses, said in Japanese. The English of core is the pattern; {0}, {1} .. are its groups.
FIELDS = {
    "prompt": "プロンプト",
    "negative prompt": "ネガティブプロンプト",
    "seed": "シード",
    "steps": "ステップ数",
    "guidance": "ガイダンススケール",
    "width": "幅",
    "height": "高さ",
    "interval's start": "ガイダンス区間の始まり",
    "interval's stop": "ガイダンス区間の終わり",
}
REFUSALS = [
    (
        r"(.+?) is not available \((.*)\)\. With a network, start the app once with (.+?); without one, the embedded model needs nothing\.",
        "{0} は使えません（{1}）。ネットワークがあれば `{2}` で一度取得してください。内蔵モデルはネットワークなしで使えます。",
    ),
    (
        r"The model in (.+?) is incomplete: (.+?) is missing; fetch the folder again\.",
        "{0} のモデルは不完全です。{1} がありません。フォルダーを取得し直してください。",
    ),
    (
        r"The model in (.+?) is damaged: (.+?) is not the file its manifest names; fetch the folder again\.",
        "{0} のモデルは壊れています。{1} がマニフェストと一致しません。フォルダーを取得し直してください。",
    ),
    (
        r"The folder (.+?) is no Stable Diffusion in diffusers' layout: it lacks (.+)\.",
        "フォルダー {0} は diffusers 形式の Stable Diffusion ではありません。{1} がありません。",
    ),
    (r"There is no run yet; draw one first\.", "まだ実行がありません。先に一枚描いてください。"),
    (
        r"The run failed \((.+)\); the server's log says more\.",
        "実行に失敗しました（{0}）。くわしいことはサーバーの記録にあります。",
    ),
    (r"The app is closing; start it again to draw\.", "アプリを終了しているところです。もう一度起動してください。"),
    (
        r"The guidance interval starts at step (\d+), but this run has (\d+); let it start earlier\.",
        "ガイダンス区間がステップ {0} から始まりますが、この実行は {1} ステップまでです。早く始めてください。",
    ),
    (
        r"The guidance interval is a first step and the step it ends before; give two numbers\.",
        "ガイダンス区間には、始まりと終わりの二つの数を入れてください。",
    ),
    (
        r"The model in (.+) could not be opened: a file is damaged or missing; fetch it again\.",
        "モデル {0} を開けませんでした。ファイルが壊れているか足りません。取得し直してください。",
    ),
    (
        r"The (.+) is (.*); it must be a whole number from (\d+) to (\d+)\.",
        "{0}が {1} です。{2} から {3} までの整数にしてください。",
    ),
    (r"The (.+) is (.*); it must be a number from (\S+) to (\S+)\.", "{0}が {1} です。{2} から {3} までの数にしてください。"),
    (r"The (.+) is (\w+), not text; type words\.", "{0}が文字ではありません（{1}）。言葉を入れてください。"),
    (
        r"The (.+) has ([\d,]+) characters; at most ([\d,]+) are read.*",
        "{0}が {1} 文字あります。読めるのは {2} 文字まで、使われるのは 77 トークンです。短くしてください。",
    ),
    (
        r"The (.+) holds the character (U\+\w+), which is no text.*",
        "{0}に文字ではない符号 {1} が入っています。消して入力し直してください。",
    ),
    (r"There is no scheduler (.+?); choose one of (.+)\.", "スケジューラー {0} はありません。{1} から選んでください。"),
    (
        r"The (.+) is (\d+), but latents are an eighth of a picture; choose a multiple of 8\.",
        "{0}が {1} です。潜在表現は絵の 8 分の 1 なので、8 の倍数にしてください。",
    ),
    (
        r"The guidance interval starts at step (\d+), after its end (\d+); swap them\.",
        "ガイダンス区間の始まりが終わりより後です。入れ替えてください。",
    ),
    (
        r"LCM can make at most (\d+) steps, not (\d+); ask for fewer steps\.",
        "LCM で作れるのは {0} ステップまでです（{1} は多すぎます）。減らしてください。",
    ),
    (
        r"There is no model (.+?) in this app; choose one of (.+)\.",
        "このアプリにモデル {0} はありません。{1} から選んでください。",
    ),
    (
        r"You have (\d+) runs waiting already; let one finish, or stop one\.",
        "すでに {0} 件が順番を待っています。終わるのを待つか、一つ停止してください。",
    ),
    (r"(\d+) runs are waiting; try again in a minute\.", "{0} 件が順番を待っています。1 分ほどしてからもう一度お試しください。"),
    (
        r"This run is no longer kept; make it again from its settings\.",
        "この実行はもう残っていません。設定からもう一度描いてください。",
    ),
    (
        r"A stopped run has no finished picture to compare; choose another\.",
        "停止した実行には、比べられる完成した絵がありません。別のものを選んでください。",
    ),
    (r"The run was stopped before it began\.", "始まる前に停止しました。"),
    (
        r"The noise prediction of step (\d+) is not finite; try a lower guidance, or float32\.",
        "ステップ {0} のノイズ予測が有限の数になりませんでした。ガイダンスを下げるか、float32 にしてください。",
    ),
    (
        r"The (latents|decoder's output) hold NaN or infinite numbers, so there is no picture;.*",
        "潜在表現または画素が有限の数にならず、絵になりません。ガイダンスを下げるか、別のスケジューラーにしてください。",
    ),
    (
        r"The device ran out of memory; choose a smaller size or wait for other runs\.",
        "デバイスのメモリーが足りません。サイズを小さくするか、ほかの実行が終わるのを待ってください。",
    ),
    (
        r"This is not a PNG, JPEG or WebP picture; choose one of these three\.",
        "PNG・JPEG・WebP の画像ではありません。この三つのどれかを選んでください。",
    ),
    (
        r"This is a (\w+) picture, which carries no settings; drop a PNG that this app made\.",
        "これは {0} 画像で、設定は入っていません。このアプリで作った PNG をドロップしてください。",
    ),
    (
        r"This PNG carries no settings of this app; drop one that was saved here, unchanged\.",
        "この PNG には、このアプリの設定が入っていません。ここで保存したままのものをドロップしてください。",
    ),
    (
        r"The picture's file is damaged or ends early; save it again and choose the new file\.",
        "画像ファイルが壊れているか、途中で切れています。保存し直したものを選んでください。",
    ),
    (
        r"The picture is far over the limit of (\d+) megapixels; make it smaller\.",
        "画像が上限の {0} メガピクセルを大きく超えています。小さくしてください。",
    ),
    (
        r"The picture has (\d+) x (\d+) pixels, over the limit of (\d+) megapixels; make it smaller\.",
        "画像は {0} x {1} 画素で、上限の {2} メガピクセルを超えています。小さくしてください。",
    ),
]


def say(language: str, key: str, **values: object) -> str:
    """A text in the visitor's language, its {names} filled in."""
    return LANGUAGES[language][key].format(**values)


def of(language: str, prefix: str) -> dict[str, str]:
    """The texts of one script: those whose key begins with its prefix, without it."""
    return {key.removeprefix(prefix): text for key, text in LANGUAGES[language].items() if key.startswith(prefix)}


def sentence(language: str, error: Exception | str) -> str:
    """One of core's sentences in the visitor's language; in English where it has no translation."""
    english = str(error)
    if language == "ja":
        for pattern, japanese in REFUSALS:
            if match := re.fullmatch(pattern, english, re.DOTALL):
                return japanese.format(*(FIELDS.get(group, group) for group in match.groups()))
    return english


def language_of(cookies: str | None, accept: str | None) -> str:
    """The visitor's language: the header's switch if it was used (a cookie), else the browser's first choice that we speak."""
    chosen = re.search(r"(?:^|;\s*)language=(\w+)", cookies or "")
    if chosen and chosen[1] in LANGUAGES:
        return chosen[1]
    ranked = []
    for place, part in enumerate((accept or "").split(",")):
        tag, _, quality = part.strip().partition(";q=")
        try:
            ranked.append((-float(quality or 1), place, tag.split("-")[0].lower()))
        except ValueError:
            continue
    return next((tag for _, _, tag in sorted(ranked) if tag in LANGUAGES), "en")

"""The `claude-api` agent: a model behind a Messages API, in a tool loop of its own (conversation.py).

Any server with a Messages API will do (`--base-url`). The key comes from ANTHROPIC_API_KEY. There is no waiting here: a
failed request is reported to the loop, and the next call continues the conversation from there.
"""

import asyncio
import os
import re
from pathlib import Path

import anthropic
import httpx2

from autoresearch import UserError, keys
from autoresearch.agents import (
    KEYS,
    AgentBlocked,
    AgentFailed,
    AgentStopped,
    AgentUnavailable,
    Proposal,
    price,
)
from autoresearch.agents.conversation import MAX_TOKENS, REQUEST, Conversation
from autoresearch.agents.failures import Meaning, meaning_of, named_wait
from autoresearch.brief import Brief

MODEL = "claude-sonnet-5-5"
SILENCE = 600.0  # seconds without a byte, after which a request is given up
USUAL_THINKING = "medium"
EFFORTS = ("low", "medium", "high", "xhigh", "max")
DOLLARS_A_SEARCH = 0.01  # of the server's web search


class ClaudeAPI:
    retries, paid = True, True

    def __init__(
        self,
        model: str | None,
        base_url: str | None,
        thinking: str | None,
        limit: float,
        web_search: bool,
        name: str = "claude-api",
        prices: tuple[float, float] | None = None,
    ) -> None:
        """prices: dollars for a million tokens, (input, output), of a server that has no public ones."""
        self.name, self.model, self.limit, self.web_search = name, model or MODEL, limit, web_search
        self.base_url = base_url or os.environ.get("ANTHROPIC_BASE_URL")
        # Other servers may know less, and nobody knows what they cost.
        self.official = self.base_url is None or "anthropic.com" in self.base_url
        self.unasked = thinking is None and self.official  # it thinks because we think that it should
        self.thinking = thinking_settings(USUAL_THINKING if self.unasked else thinking)
        self.prices = prices
        self.paused: list[Conversation] = []  # conversations whose last request failed, to be continued
        self.has_key = any(map(os.environ.get, KEYS))
        if not self.has_key and not self.base_url:
            raise UserError(
                "claude-api needs a key: export ANTHROPIC_API_KEY=..., or --base-url for a server that asks for none, "
                "or another --agent"
            )

    def client(self) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(
            api_key=None if self.has_key else "none",  # None: the SDK finds it
            base_url=self.base_url,
            max_retries=0,
            timeout=httpx2.Timeout(min(self.limit, SILENCE), connect=10),
        )

    def price(self, taken: int, made: int, cached: int, written: int, searches: int) -> float | None:
        """Dollars for one request; None where nobody knows."""
        if self.prices:
            return (taken * self.prices[0] + made * self.prices[1]) / 1e6
        dollars = price(self.model, "anthropic", taken, made, cached, written) if self.official else None
        return None if dollars is None else dollars + searches * DOLLARS_A_SEARCH

    async def propose(self, brief: Brief, folder: Path) -> Proposal:
        async with self.client() as client:  # of this proposal: no connection outlives it
            if conversation := next((paused for paused in self.paused if paused.fits(brief)), None):
                self.paused.remove(conversation)
                conversation.go_on(client, brief, folder)
            else:
                conversation = Conversation(self, client, brief, folder)
            try:
                return await self.answer_of(conversation)
            except AgentUnavailable:
                if not conversation.out_of_time and (paused := conversation.pause()):
                    self.paused.append(paused)
                raise

    async def answer_of(self, conversation: Conversation) -> Proposal:
        """The result of a conversation. Failures are raised as the loop expects them."""
        server = conversation.client.base_url
        try:
            return await conversation.run()
        except asyncio.CancelledError:
            if not conversation.tokens:
                raise
            raise AgentStopped("stopped", **conversation.costs()) from None
        except TimeoutError:
            reason = f"the model did not submit within {self.limit:g} s"
            if not conversation.out_of_time:
                reason = f"{server}: no whole answer within {REQUEST:g} s"
            raise AgentUnavailable(reason, **conversation.costs()) from None
        except anthropic.BadRequestError as error:
            unknown = not conversation.turns and re.search("thinking|effort|output_config", str(error))
            if not self.unasked or not unknown or not conversation.thinking:
                raise self.failure(error, conversation) from None
            self.thinking = conversation.thinking = {}  # from now on; those that began before find it out, too
            conversation.note({"role": "loop", "content": f"asked without thinking, which the model refuses: {error}"})
            return await self.answer_of(conversation)
        except anthropic.APIStatusError as error:
            raise self.failure(error, conversation) from None
        except (anthropic.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ or error
            raise AgentUnavailable(f"{server}: {type(cause).__name__} {cause}", **conversation.costs()) from None
        except (anthropic.AnthropicError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            # from a server that only nearly speaks this API
            reason = f"an answer that makes no sense: {type(error).__name__}: {error}"
            raise AgentFailed(reason, **conversation.costs()) from None

    def failure(self, error: anthropic.APIStatusError, conversation: Conversation) -> Exception:
        """What to raise for an error status: only a person can fix it, it will pass, or this proposal failed."""
        server = conversation.client.base_url
        body = error.body.get("error") if isinstance(error.body, dict) else None
        kind, said = "", error.message
        if isinstance(body, dict):
            kind, said = body.get("type") or "", body.get("message") or said
        said, status = keys.scrub(f"{said}")[:300], error.status_code
        meaning = meaning_of(f"{status} {kind}: {said}")
        again = "run the same command again; nothing is lost"
        if meaning is Meaning.SIGNED_OUT or status == 403:
            return AgentBlocked(
                f"{server} refused the key ({status}: {said}). Set a valid one, `export ANTHROPIC_API_KEY=...`, and "
                + again,
                **conversation.costs(),
            )
        if meaning is Meaning.NO_CREDIT:
            return AgentBlocked(
                f"{server} asks for payment ({said}). Top up the account, or choose another --agent, and {again}",
                **conversation.costs(),
            )
        if meaning is Meaning.NO_MODEL:
            return AgentBlocked(
                f"{server} does not know the model {self.model} ({said}); choose one with --model",
                **conversation.costs(),
            )
        if meaning is Meaning.PASSES:
            wait = named_wait(f"retry-after: {error.response.headers.get('retry-after', '')}")
            wait = named_wait(said) if wait is None else wait
            return AgentUnavailable(f"{status} {kind}: {said}", **conversation.costs(), again=wait)
        return AgentFailed(f"{server} answered {status}: {said}", **conversation.costs())


def thinking_settings(thinking: str | None) -> dict:
    """Request settings for --thinking; none for the model's own default."""
    if thinking is None:
        return {}
    if thinking == "off":
        return {"thinking": {"type": "disabled"}}
    if thinking in EFFORTS:
        return {"thinking": {"type": "adaptive"}, "output_config": {"effort": thinking}}
    if thinking.isdigit() and 1024 <= int(thinking) < MAX_TOKENS:
        return {"thinking": {"type": "enabled", "budget_tokens": int(thinking)}}
    raise UserError(
        f"--thinking takes {', '.join(EFFORTS)}, off, or a number of tokens from 1024 to {MAX_TOKENS - 1}, "
        f"not {thinking!r}"
    )

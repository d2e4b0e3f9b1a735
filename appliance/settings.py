"""Every setting, once: name, type, default, help, secret or not.

Values come, strongest first, from the command line, the environment (APPLIANCE_<NAME>), `/etc/appliance/appliance.toml`, then
the default. Unknown names in the file and unsafe values are refused with the name of the setting. Where things lie below the
home folder is decided here as well, so that no other module builds such a path.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from appliance.errors import BadInput

CONFIG_FILE = Path("/etc/appliance/appliance.toml")
INSTALLED_HOME = Path("/var/lib/appliance")
PACKAGE = Path(__file__).resolve().parent
CLONE = PACKAGE.parent


def default_home() -> Path:
    """The installed box's folder where there is one, else `.appliance` in the clone."""
    return INSTALLED_HOME if INSTALLED_HOME.is_dir() else CLONE / ".appliance"


def _given(name: str) -> Path:
    """What comes with the program beside its package: in a clone at its top, on an installed box in its virtual environment."""
    folder = CLONE / name
    return folder if folder.is_dir() else Path(sys.prefix) / "share" / "appliance" / name


Role = Literal["pupil", "teacher", "safeguarding", "administrator"]


class Settings(BaseSettings):
    """All settings, validated. Raise BadInput through `load()`; direct construction is for tests and wiring."""

    model_config = SettingsConfigDict(env_prefix="APPLIANCE_", extra="ignore", frozen=True)

    home: Path = Field(default_factory=default_home, description="Folder that holds everything the box keeps.")
    school: str = Field("Our school", min_length=1, max_length=80, description="Name shown at the top of each page.")
    host: str = Field("127.0.0.1", description="Address the web pages listen on; 0.0.0.0 is the whole LAN.")
    port: int = Field(8080, ge=1, le=65535, description="Port the web pages listen on.")
    allowed_hosts: tuple[str, ...] = Field(
        ("127.0.0.1", "localhost", "[::1]", "appliance.local"),
        description="Names under which a browser may reach the pages; any other Host header is refused.",
    )
    safeguarding_contact: str = Field(
        "", max_length=300, description="Whom pupils can turn to, as fixed texts name them: a person, a room, a phone number."
    )
    log_format: Literal["plain", "json"] = Field(
        "plain", description="How services log: plain lines, or json, an object a line with a line for each request."
    )
    session_hours: float = Field(12.0, gt=0, le=24 * 30, description="A sign-in lasts this long.")
    threads: int = Field(0, ge=0, le=512, description="Threads for the language model; 0 takes every core.")
    slots: int = Field(0, ge=0, le=256, description="Conversations that run in one batch; 0 is what the machine bears.")
    cache_mb: int = Field(0, ge=0, description="Memory for what conversations share and keep; 0 is what the machine bears.")
    context: int = Field(0, ge=0, description="Tokens a conversation may hold; 0 takes what the model was made for.")
    backend: Literal["auto", "llama", "transformers", "fake"] = Field(
        "auto",
        description="What computes answers: llama (llama.cpp), transformers (the model's Hugging Face weights), or auto: "
        "transformers on a GPU that is free and large enough, llama.cpp for all else. fake asks no model, for load tests.",
    )
    queue: int = Field(64, ge=1, description="Requests that may wait; one more is refused with a time to come back.")
    answer_tokens: int = Field(200, ge=16, le=8192, description="Longest answer, in the model's tokens.")
    extract_memory_mb: int = Field(512, ge=128, description="Memory a document's reader may use before it is stopped.")
    extract_seconds: int = Field(20, ge=5, description="Processor seconds a document's reader may use.")
    document_mb: int = Field(200, ge=1, description="Largest file that can be added.")
    document_characters: int = Field(20_000_000, ge=1000, description="Most text that is read from one document.")
    document_pages: int = Field(5_000, ge=1, description="Most pages of a PDF; one of more is refused by its count.")
    ocr_languages: str = Field(
        "eng",
        description="Languages of scanned pages as tesseract names them, such as eng+fra, read where tesseract is installed; "
        "empty leaves scanned pages alone.",
    )
    watch_seconds: float = Field(30.0, ge=0.1, description="Time between two looks at the folders that are watched.")
    reranker: Path | None = Field(
        None, description="Folder with a cross-encoder that puts found passages in order; empty goes without, and is quicker."
    )
    practice_lines: Literal["auto", "written", "model"] = Field(
        "auto",
        description="Who words what simulated pupils say in a teacher's rehearsal: auto asks any model but the starter, model "
        "asks that one too, written takes the lines that stand in the scene.",
    )
    practice_seconds: float = Field(8.0, ge=0.1, le=60, description="Longest wait for a model's line; then the written one.")
    passages: int = Field(3, ge=1, le=20, description="Passages that an answer stands on.")
    train_memory_mb: int = Field(12_000, ge=1000, description="Memory a tuning run may use before it is stopped.")
    gate_seconds: int = Field(0, ge=0, description="Time that judging a new model may take, each set its share; 0 asks all.")
    gpu_window: str = Field("", description="Hours in which tuning may use a GPU, such as 20:00-06:00; empty is always.")
    disk_reserve_mb: int = Field(500, ge=0, description="Free space that tuning and adding documents leave alone.")
    backup_to: Path | None = Field(
        None, description="Folder for backups on another disk: a USB disk, or a share that is mounted, below /mnt or /media; "
        "empty keeps them on the box's own disk, where they do not outlive it."
    )  # fmt: skip
    backup_same_disk: bool = Field(False, description="Write backups to backup_to although it is on the box's own disk.")
    backup_keep: dict[Literal["last", "daily", "weekly", "monthly", "yearly"], int] = Field(
        {"last": 3, "daily": 7, "weekly": 4, "monthly": 12},
        description="How many backups are kept: the last ones, and so many days, weeks and months back.",
    )

    # --- models of other machines -----------------------------------------------------------------------------------------
    hosted_for: Literal["staff", "everyone"] = Field(
        "staff",
        description="Whose questions, with the passages found for them, a promoted model of another machine may be sent: staff "
        "answers pupils by the local model before it, so that no pupil's word leaves the building; everyone sends theirs too.",
    )
    hosted_http: bool = Field(
        False, description="Reach model servers at private addresses without encryption, such as http://10.0.0.7:8000."
    )

    # --- sign-in by the school's directory, LDAP or Active Directory --------------------------------------------------
    ldap_url: str = Field(
        "", description="The school's directory: ldaps://ldap.school.example, or ldap:// (then made safe by StartTLS); "
        "empty: none. The host must be allowed as well, see `appliance network allow`."
    )  # fmt: skip
    ldap_plain: bool = Field(
        False, description="Send passwords to an ldap:// directory without encryption; only for one on this same machine."
    )
    ldap_ca_file: Path | None = Field(
        None, description="File with the certificate authority that the directory's certificate is from; empty is the system's."
    )
    ldap_base: str = Field("", description="Where people and groups are looked for, such as dc=school,dc=example.")
    ldap_bind_dn: str = Field("", description="The box's own account in the directory; empty looks people up as nobody.")
    ldap_bind_password_file: Path | None = Field(
        None, description="File with that account's password, for the appliance's user alone."
    )
    ldap_user_filter: str = Field(
        "(&(objectClass=person)(uid={name}))",
        description="How a person is found by the name that was typed; in Active Directory: "
        "(&(objectCategory=person)(|(sAMAccountName={name})(userPrincipalName={name}))).",
    )
    ldap_name_attribute: str = Field(
        "uid", description="Attribute with the name of the account; in Active Directory: sAMAccountName."
    )
    ldap_groups: dict[str, Role] = Field(
        {}, description="The role of who is in a group, by the group's DN; the first that fits counts, such as "
        '{ "cn=teachers,ou=groups,dc=school,dc=example" = "teacher" }.'
    )  # fmt: skip
    ldap_group_filter: str = Field(
        "(|(member={dn})(uniqueMember={dn})(memberUid={name}))",
        description="How the groups of a person are found, besides the attribute memberOf; for groups within groups in Active "
        "Directory: (member:1.2.840.113556.1.4.1941:={dn}).",
    )
    ldap_role: Role | Literal[""] = Field(
        "pupil", description="The role of who is in none of ldap_groups; empty lets nobody else in."
    )
    ldap_class_attribute: str = Field(
        "", description="Attribute with the names of a person's classes, which they join where the box has them; empty: none."
    )

    # --- sign-in by OpenID Connect --------------------------------------------------------------------------------------
    oidc_issuer: str = Field(
        "", description="Who signs people in by OpenID Connect, such as https://login.school.example/realms/school; empty: "
        "nobody. Its hosts must be allowed as well."
    )  # fmt: skip
    oidc_name: str = Field(
        "", max_length=60, description="What the button calls it, after Sign in with: such as your school account."
    )
    oidc_client_id: str = Field("", description="The box's name there.")
    oidc_client_secret_file: Path | None = Field(
        None, description="File with the box's secret there, for the appliance's user alone; empty: it has none."
    )
    oidc_redirect: str = Field(
        "", description="The box's own address, as it was registered there, such as "
        "https://appliance.local/sign-in/oidc/callback."
    )  # fmt: skip
    oidc_scopes: str = Field("openid profile", description="What is asked for; openid is a part of it.")
    oidc_ca_file: Path | None = Field(
        None, description="File with the certificate authority of its certificate; empty is the system's."
    )
    oidc_name_claim: str = Field("preferred_username", description="Claim with the name of the account.")
    oidc_role_claim: str = Field("", description="Claim that says what somebody is, such as groups or roles; empty: none.")
    oidc_roles: dict[str, Role] = Field(
        {}, description='The role that goes with a value of that claim, the first that fits; such as { Staff = "teacher" }.'
    )  # fmt: skip
    oidc_role: Role | Literal[""] = Field(
        "pupil", description="The role of who has none of these values; empty lets nobody else in."
    )

    # --- fine-tuning and answers by OpenAI, where a school chooses it ---------------------------------------------------
    openai_url: str = Field(
        "https://api.openai.com/v1", description="Where OpenAI's service is reached; its host must be allowed as well, see "
        "`appliance network allow`."
    )  # fmt: skip
    openai_key_file: Path | None = Field(
        None, description="File with the key of the school's account there, for the appliance's user alone (chmod 0600); the "
        "commands need it. Empty: systemd's credential openai-key, which the services get from /etc/credstore/openai-key "
        "(root, chmod 0600) where that is there when they start."
    )  # fmt: skip
    openai_ca_file: Path | None = Field(
        None, description="File with the certificate authority of its certificate; empty is the system's."
    )
    openai_prices: Path | None = Field(
        None,
        description="File with its prices and limits, as appliance/content/openai.toml, which is used where this is empty.",
    )
    openai_budget: float = Field(
        10.0,
        ge=0,
        le=1_000_000,
        description="What its answers may cost in a month, in the money of the prices; then it refuses.",
    )
    openai_seconds: float = Field(60.0, ge=0.1, le=600, description="Longest wait for one of its answers, or for it to speak.")
    openai_poll_seconds: float = Field(20.0, ge=0.1, le=3600, description="Time between two looks at a fine-tuning there.")

    @field_validator("ldap_url")
    @classmethod
    def _directory(cls, value: str) -> str:
        if value and not re.fullmatch(r"ldaps?://(\[[0-9a-fA-F:.]+\]|[^\s/:@?#\[\]]+)(:[0-9]{1,5})?/?", value):
            raise ValueError("write it as ldaps://HOST or ldaps://HOST:PORT")
        return value

    @field_validator("ldap_user_filter")
    @classmethod
    def _filter(cls, value: str) -> str:
        if "{name}" not in value or not value.startswith("(") or not value.endswith(")"):
            raise ValueError("write it in brackets and with {name} where the name belongs")
        return value

    @field_validator("oidc_issuer", "oidc_redirect", "openai_url")
    @classmethod
    def _https(cls, value: str) -> str:
        """Without encryption only on this same machine, where there is no line to listen on."""
        here = r"http://(127\.0\.0\.1|\[::1\]|localhost)(:[0-9]{1,5})?(/[^\s?#]*)?"
        if value and not re.fullmatch(rf"https://[^\s/@?#]+(/[^\s?#]*)?|{here}", value):
            raise ValueError("write it as https://HOST/PATH")
        return value

    @field_validator("openai_url")
    @classmethod
    def _version(cls, value: str) -> str:
        if not value.endswith("/v1"):
            raise ValueError("write it as https://HOST/v1")
        return value

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("backup_keep")
    @classmethod
    def _some_backups(cls, value: dict[str, int]) -> dict[str, int]:
        if min(value.values(), default=0) < 0 or not any(value.values()):
            raise ValueError("keep at least one")
        return value

    @field_validator("gpu_window")
    @classmethod
    def _hours(cls, value: str) -> str:
        if value and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d", value):
            raise ValueError("write it as 20:00-06:00")
        return value

    @field_validator("ocr_languages")
    @classmethod
    def _languages(cls, value: str) -> str:
        if value and not re.fullmatch(r"\w+(\+\w+)*", value, re.ASCII):
            raise ValueError("write it as eng or eng+fra")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library passes it; no .env file is read
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, CONFIG_FILE))

    # --- where things lie --------------------------------------------------------------------------------------------
    @property
    def database(self) -> Path:
        return self.home / "appliance.sqlite3"

    @property
    def run(self) -> Path:
        """Sockets and locks: nothing here matters after a reboot."""
        return self.home / "run"

    @property
    def egress_socket(self) -> Path:
        """The one way out of the box, where somebody listens."""
        return self.run / "egress.sock"

    @property
    def network(self) -> Path:
        """The hosts outside that the administrator allowed."""
        return self.home / "network.json"

    @property
    def engine_socket(self) -> Path:
        return self.run / "engine.sock"

    @property
    def engine_cache(self) -> Path:
        """What whole classes share, as the engine computed it; it may be deleted at any time."""
        return self.home / "engine-cache"

    @property
    def documents(self) -> Path:
        """The files as they were added, named by the server."""
        return self.home / "documents"

    @property
    def uploads(self) -> Path:
        """Files that were given through a page, until their documents are in the library."""
        return self.home / "uploads"

    @property
    def index(self) -> Path:
        return self.home / "index"

    @property
    def models(self) -> Path:
        """The registry: a folder for each model, and `active.json`."""
        return self.home / "models"

    @property
    def runs(self) -> Path:
        """Tuning runs: recipe, data, checkpoints, loss log, report."""
        return self.home / "runs"

    @property
    def openai(self) -> Path:
        """What answers by OpenAI have cost, month by month."""
        return self.home / "openai"

    @property
    def standing(self) -> Path:
        """Held-out conversations of every model that was promoted."""
        return self.home / "standing"

    @property
    def comparisons(self) -> Path:
        """What people chose between two models."""
        return self.home / "comparisons"

    @property
    def reports(self) -> Path:
        """Pages and figures of models that were judged again or compared."""
        return self.home / "reports"

    @property
    def jobs(self) -> Path:
        """The record of each job, as it tells it."""
        return self.home / "jobs"

    @property
    def fence(self) -> Path:
        """The secret from which prompts' fences get their tokens."""
        return self.home / "fence.secret"

    @property
    def devices(self) -> Path:
        """The secret by which browsers show that somebody has signed in there before."""
        return self.home / "devices.secret"

    @property
    def backups(self) -> Path:
        """What is known of backups, the state before a restore, and backups that have no other disk."""
        return self.home / "backups"

    @property
    def switching(self) -> Path:
        """What a restore has begun to move, while it does."""
        return self.backups / "switching.json"

    @property
    def backup_key(self) -> Path:
        """The key of the backups; a restore on another box needs it, so people keep a copy on paper."""
        return self.home / "backup.key"

    @property
    def checks(self) -> Path:
        """How well the search did, check after check."""
        return self.home / "checks.jsonl"

    @property
    def selftest(self) -> Path:
        """What this machine was measured to do, and which model that is enough for."""
        return self.home / "selftest.json"

    @property
    def starter(self) -> Path:
        """The small model that comes with the box."""
        return _given("models") / "starter"

    @property
    def catalog(self) -> Path:
        """Well-known open models and what they need."""
        return _given("models") / "catalog.toml"

    @property
    def content(self) -> Path:
        return PACKAGE / "content"


def load(**overrides: Any) -> Settings:
    """Settings from file, environment and `overrides` (None means not given).

    Raises BadInput naming the setting at fault.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    _refuse_unknown_names()
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        field = Settings.model_fields.get(name)
        about = f" ({field.description})" if field is not None else ""
        raise BadInput(
            f"The setting {name}{about} cannot be {first.get('input')!r}: {first['msg']}.",
            f"Correct it in {CONFIG_FILE}, or the variable APPLIANCE_{name.upper()}.",
        ) from None


def _refuse_unknown_names() -> None:
    import tomllib

    if not CONFIG_FILE.is_file():
        return
    try:
        names = set(tomllib.loads(CONFIG_FILE.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{CONFIG_FILE} is not valid TOML: {error}.", "Correct that line.") from None
    unknown = sorted(names - set(Settings.model_fields))
    if unknown:
        raise BadInput(f"{CONFIG_FILE} names unknown settings: {', '.join(unknown)}.", "See `appliance settings --all`.")


def log_format() -> str:
    """What the setting log_format says, for who has to say that the settings cannot be used; "" where that is not known."""
    import tomllib

    said = os.environ.get("APPLIANCE_LOG_FORMAT", "")
    if not said and CONFIG_FILE.is_file():
        with suppress(OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            said = str(tomllib.loads(CONFIG_FILE.read_text("utf-8")).get("log_format", ""))
    return said


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0))
